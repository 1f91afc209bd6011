"""What an average step does with the optimizers' states, where they do not stay as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lookaround_ddp.averaging.exchange import average_matrices_
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.rows import Rows
from lookaround_ddp.averaging.tensors import is_number


def same_states(optimizers: Sequence[torch.optim.Optimizer], replica_group: ReplicaGroup) -> list[list[Tensor]]:
    """Returns each optimizer's state; collective.

    Raises:
        ValueError: on all ranks, unless all replicas' states have the same shapes.
    """
    rows = _states(optimizers)
    shapes = [[(tuple(value.shape), str(value.dtype)) for value in row] for row in rows]
    if any(row != shapes[0] for theirs in replica_group.gather_objects(shapes) for row in theirs):
        raise ValueError(
            "optimizer_state='average': the replicas' optimizers hold different states; a parameter "
            "that only some replicas use has none on the others, so keep 'local' or 'reset'"
        )
    return rows


def average_states_(states: Sequence[Sequence[Tensor]], replica_group: ReplicaGroup, *, exact: bool) -> None:
    """Replaces the states of all replicas' optimizers, which are alike, by their mean; collective."""
    rows = Rows(replica_group, moves=False)
    rows.open(states[0], [])
    rows.take(states)
    average_matrices_(rows.matrices, replica_group, None, exact=exact)
    rows.give()


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Clears the optimizer's state, including step counts kept in param groups."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group.pop("step", None)


def _states(optimizers: Iterable[torch.optim.Optimizer]) -> list[list[Tensor]]:
    """Returns each optimizer's state tensors except step counts, which agree unless a scaler skipped a step."""
    rows = []
    for optimizer in optimizers:
        states = [optimizer.state.get(p, {}) for group in optimizer.param_groups for p in group["params"]]
        values = [state[key] for state in states for key in sorted(state) if key != "step"]
        rows.append([value for value in values if isinstance(value, Tensor) and is_number(value)])
    return rows
