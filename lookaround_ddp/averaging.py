"""`Lookaround`: k steps around, 1 step average, for any training loop (arXiv 2306.07684, Algorithm 1).

It needs torch alone. A replica is a model that a rank trains with an optimizer and data of its own;
`Lookaround` starts all replicas from one point, counts their steps, and after every k-th replaces the
replicas by their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.exchange import Layout, average_, broadcast_, layout_of
from lookaround_ddp.members import Members
from lookaround_ddp.structure import (
    all_finite,
    as_list,
    averaged_tensors,
    check_models,
    check_ranks,
    digest,
    forget,
    local_tensors,
    optimizer_states,
)


class Lookaround:
    """Replaces the replicas' weights by their mean after every k steps of all replicas.

        around = Lookaround(model, k=5)
        for images, labels in loader:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
            around.step()

    Creating it is collective: parameters and buffers of all replicas become those of the first one.

    The mean is over floating-point (and complex) parameters and the running statistics of norm layers,
    summed in fp64 in replica order and rounded once: the same bits on every rank, for any number of
    ranks. Other buffers stay with their replica. `step` counts *attempted* steps, so a step that a
    `GradScaler` skips on one rank does not shift that rank's averages.

    Args:
        models: the model of this rank, or the models that this rank hosts, as many on every rank. Replica
            numbers run through the ranks: rank 0's models first.
        k: steps in a round; None never averages (independent replicas).
        start: steps before the first round begins.
        group: the ranks to average over; by default all, or this process alone where none are set up.
        shards: where several ranks train one replica with DDP, the group of these ranks; a replica's
            buffers are then those of the group's first rank.
        buffers: names of further floating-point buffers to average.
        exact: False sums in the backend's own order: on one machine and one number of ranks that is still
            deterministic for most backends, but not the same for another number of ranks.
        optimizers: the models' optimizers, for an `optimizer_state` other than "local".
        optimizer_state: what the average step does with it: "local" leaves it with its replica (the
            paper's code), "average" averages it too, "reset" clears it.
        measure: keep the distances of the replicas to their mean in `distances` at each average step; may be
            set anew before any of them, on all ranks alike.

    Attributes:
        steps: steps of each replica so far.
        distances: L2 distance of each replica's parameters to the mean at the last average step that measured
            it, shape (d,), fp64; None before the first.

    Raises:
        ValueError: on all ranks, whichever of them it concerns: k < 1, start < 0, a model that is wrapped in
            DDP or FSDP or has lazy parameters, hosted models that share tensors, models or ranks that differ
            in structure or settings, an unknown name in `buffers`.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        k: int | None = 5,
        *,
        start: int = 0,
        group: dist.ProcessGroup | None = None,
        shards: dist.ProcessGroup | None = None,
        buffers: Iterable[str] = (),
        exact: bool = True,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        optimizer_state: Literal["local", "average", "reset"] = "local",
        measure: bool = False,
    ) -> None:
        self.models = as_list(models)
        self.k, self.start, self.exact, self.measure = k, start, exact, measure
        self.extra_buffers = frozenset(buffers)
        self.optimizers, self.optimizer_state = list(optimizers), optimizer_state
        self.shards = shards
        self.steps = 0
        self.distances: Tensor | None = None
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.members = Members(group, hosted=len(self.models))
        self._check()
        layouts = [layout_of(tensor) for tensor in chain(*self._averaged_tensors()[0])]
        self._layouts: list[Layout] = self.members.gather_objects(layouts)[0]
        self.restart()

    @property
    def replicas(self) -> int:
        """d, the number of replicas on all ranks."""
        return self.members.replicas

    def due(self, steps: int) -> bool:
        """Whether an average step follows step number `steps`, counted from 1."""
        return self.k is not None and steps > self.start and (steps - self.start) % self.k == 0

    def step(self) -> bool:
        """Counts a step of every replica; the last of a round is followed by the average step.

        Call it on every rank after each step, attempted or skipped. Returns whether it averaged.
        """
        self.steps += 1
        if not self.due(self.steps):
            return False
        self.average()
        return True

    @torch.no_grad()
    def average(self) -> None:
        """The average step, now, on all ranks: theta_j = phi = 1/d sum_i theta_i for every replica j.

        Raises:
            FloatingPointError: on every rank, before any weight is touched, if a replica is not finite.
            ValueError: on every rank, before any weight is touched, if optimizer states to average differ.
        """
        self.synchronize_shards()
        averaged = self._averaged_tensors()
        self._check_finite(averaged, self.steps)
        states = self._optimizer_states() if self.optimizer_state == "average" else None
        squares = self._average(averaged, spread=True, measure=self.measure)
        if squares is not None:
            self.distances = squares.sqrt()
        if states is not None:
            layouts = [tuple(range(value.dim())) for value in states[0]]  # on every rank, however it is laid out there
            average_(states, layouts, self.members, exact=self.exact)
        if self.optimizer_state == "reset":
            for optimizer in self.optimizers:
                forget(optimizer)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lends the mean model phi: this rank's first model, with the mean's weights while the block runs.

        Collective, like the average step; on leaving, the replica is restored bit for bit, integer and
        other buffers included. Buffers that are not averaged are replica 0's meanwhile.

        Raises:
            FloatingPointError: on every rank, if a replica is not finite.
        """
        self.synchronize_shards()
        averaged = self._averaged_tensors()
        self._check_finite(averaged, self.steps)
        model = self.models[0]
        tensors = [*model.parameters(), *model.buffers()]
        kept = [tensor.detach().clone() for tensor in tensors]
        try:
            with torch.no_grad():
                self._average(averaged, spread=False)
                broadcast_(local_tensors(model, self.extra_buffers), self.members.group)
            yield model
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.detach().copy_(value)

    @torch.no_grad()
    def restart(self) -> None:
        """Gives all replicas the parameters and buffers of the first one; collective."""
        first = [*self.models[0].parameters(), *self.models[0].buffers()]
        broadcast_(first, self.members.group)
        for model in self.models[1:]:
            for tensor, value in zip([*model.parameters(), *model.buffers()], first, strict=True):
                tensor.detach().copy_(value)

    @torch.no_grad()
    def synchronize_shards(self) -> None:
        """Gives all ranks of a replica the buffers of the first; collective.

        DDP's ranks each keep statistics of their own share of the batch, until the next forward pass
        does the same.
        """
        for model in self.models:
            broadcast_(list(model.buffers()), self.shards)

    @torch.no_grad()
    def check_finite(self, step: int | None = None) -> None:
        """Raises FloatingPointError on all ranks, naming replica and step, if a weight is inf or NaN.

        Args:
            step: the number of the last step, if it has not been counted yet.
        """
        self._check_finite(self._averaged_tensors(), self.steps if step is None else step)

    def state_dict(self) -> dict[str, Any]:
        """The count of steps and the last distances, JSON-able. The replicas' own states are the caller's to keep."""
        return {"steps": self.steps, "distances": None if self.distances is None else self.distances.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, distances = int(state["steps"]), state["distances"]
        self.distances = None if distances is None else torch.tensor(distances, dtype=torch.float64)

    # What is averaged

    def _averaged_tensors(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Of each hosted model: parameters, buffers. Found anew each time, since a caller may have replaced them."""
        return [averaged_tensors(model, self.extra_buffers) for model in self.models]

    def _check_finite(self, averaged: list[tuple[list[Tensor], list[Tensor]]], step: int) -> None:
        flags = torch.stack([all_finite(parameters + buffers) for parameters, buffers in averaged])
        bad = (~self.members.gather(flags).bool()).nonzero().flatten().tolist()
        if bad:
            which = "replica " + str(bad[0]) if len(bad) == 1 else "replicas " + ", ".join(map(str, bad))
            raise FloatingPointError(
                f"{which} not finite after iteration {step}: lower the learning rate, clip the "
                f"gradient or use bf16 instead of fp16"
            )

    def _average(
        self, averaged: list[tuple[list[Tensor], list[Tensor]]], *, spread: bool, measure: bool = False
    ) -> Tensor | None:
        """Squared distances of the parameters, if measured."""
        rows = [parameters + buffers for parameters, buffers in averaged]
        measured = len(averaged[0][0]) if measure else 0
        return average_(rows, self._layouts, self.members, exact=self.exact, spread=spread, measured=measured)

    def _optimizer_states(self) -> list[list[Tensor]]:
        rows = optimizer_states(self.optimizers)
        shapes = [[(tuple(value.shape), str(value.dtype)) for value in row] for row in rows]
        if any(row != shapes[0] for theirs in self.members.gather_objects(shapes) for row in theirs):
            raise ValueError(
                "optimizer_state='average': the replicas' optimizers hold different states; a parameter "
                "that only some replicas use has none on the others, so keep 'local' or 'reset'"
            )
        return rows

    # Refusals

    def _check(self) -> None:
        """Raises ValueError on all ranks if there is something wrong with one of them."""
        try:
            self._check_arguments()
            check_models(self.models, self.extra_buffers)
            refusal = None
        except ValueError as error:
            refusal = error  # the other ranks must hear of it, not wait for this one
        settings = {
            "number of models": len(self.models),
            "k": self.k,
            "start": self.start,
            "buffers": sorted(self.extra_buffers),
            "exact": self.exact,
            "optimizer_state": self.optimizer_state,
            "measure": self.measure,
            "structure of the model (digest)": None if refusal else digest(self.models[0]),
        }
        check_ranks(self.members, settings, refusal)

    def _check_arguments(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k is {self.k}: a round has at least 1 step; None never averages")
        if self.start < 0:
            raise ValueError(f"start is {self.start}: give the number of steps before the first round, 0 or more")
        if self.optimizer_state not in ("local", "average", "reset"):
            raise ValueError(f"optimizer_state is {self.optimizer_state!r}: use 'local', 'average' or 'reset'")
        if self.optimizer_state != "local" and len(self.optimizers) != len(self.models):
            raise ValueError(f"optimizer_state={self.optimizer_state!r} needs `optimizers`, one for each model")
