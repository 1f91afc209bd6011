"""What the ranks say of their replicas before an average, and when the host hears of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lookaround_ddp.averaging.replica_group import ReplicaGroup


class UnlikeReplicasError(ValueError):
    """Replicas that can no longer be averaged, since somebody converted some of them."""


class Verdict:
    """Whether all replicas can be averaged: they are finite, and alike in the dtypes and shapes of their tensors.

    Collective when it is made. On a GPU nobody waits for it: `ok` decides on the device whether the mean is written,
    and `look` tells the host, which by then does not wait either.

    Args:
        finite: of each hosted replica 1 or 0, shape (hosted,), int64.
        kinds: of each a number that tells the dtypes and shapes of its tensors.
        step: the number of the replicas' last step.
        later: whether the host is not to wait.

    Attributes:
        ok: shape (), bool, on the replicas' device, where the host is not to wait; None if it has: all is well then.
    """

    def __init__(self, finite: Tensor, kinds: Sequence[int], members: ReplicaGroup, step: int, later: bool) -> None:
        self.step = step
        columns = [torch.full_like(finite[0], kind) for kind in kinds]  # by kernels: a copy from the host would wait
        self._table = table = members.gather(torch.stack([finite, torch.stack(columns)], 1))
        self.ok: Tensor | None = None
        self._looked = False
        self._copied: torch.cuda.Event | None = None
        if later:
            self.ok = ((table[:, 0] == 1) & (table[:, 1] == table[0, 1])).all().to(finite.device)
        if later and table.is_cuda:
            self._table = torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(table.device))
        elif not later:
            self.look()

    def alike(self) -> bool:
        """Waits, and returns whether the tensors of all replicas are of the same dtypes and shapes."""
        return len({kind for _, kind in self._arrived().tolist()}) == 1

    def look(self) -> None:
        """Waits until what the ranks said has come.

        Raises:
            UnlikeReplicasError: tensors that were replaced by others of another dtype or shape, on some ranks only.
            FloatingPointError: inf or NaN in a tensor; names the replicas.
        """
        if self._looked:
            return
        table = self._arrived().tolist()
        others = [replica for replica, (_, kind) in enumerate(table) if kind != table[0][1]]
        if others:
            raise UnlikeReplicasError(
                f"replica {others[0]} has weights of other dtypes or shapes than replica 0 has: convert all of them "
                "alike"
            )
        bad = [replica for replica, (finite, _) in enumerate(table) if not finite]
        if bad:
            which = "replica " + str(bad[0]) if len(bad) == 1 else "replicas " + ", ".join(map(str, bad))
            raise FloatingPointError(
                f"{which} not finite after iteration {self.step}: lower the learning rate, clip the "
                f"gradient or use bf16 instead of fp16"
            )
        self._looked = True

    def _arrived(self) -> Tensor:
        """Waits for what the ranks said: shape (replicas, 2), finite and kinds."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._table
