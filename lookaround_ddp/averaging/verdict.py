"""What the ranks say of their replicas before an average, and when the host hears of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from lookaround_ddp.averaging.replica_group import ReplicaGroup

KIND_BITS = 32
STEP_BITS = 31  # so that both are one number that int64 can hold


class NotFiniteError(FloatingPointError):
    """A replica, or its loss, is inf or NaN: found by all ranks together, and raised on each."""


class UnlikeReplicasError(ValueError):
    """Replicas that can no longer be averaged: some are others than they were, or at another step."""


class Verdict:
    """Whether all replicas can be averaged: finite, alike in their tensors' dtypes and shapes, and at one step.

    Collective when it is made. On a GPU nobody waits for it: `ok` decides on the device whether the mean is written,
    and `look` tells the host, which by then does not wait either.

    Args:
        sums: of each hosted replica a number that is finite if all its elements are, shape (hosted,), fp64.
        kinds: of each 32 bits that tell the dtypes and shapes of its tensors.
        step: the number of the replicas' last step.
        later: whether the host is not to wait.
        began_from: the sum that all replicas began from, to warn if all have come to another one, which is the same;
            None: the sums are not compared.

    Attributes:
        ok: shape (), bool, on the replicas' device, where the host is not to wait; None if it has: all is well then.

    Raises:
        RuntimeError: the other ranks did not come.
    """

    def __init__(
        self,
        sums: Tensor,
        kinds: Sequence[int],
        replica_group: ReplicaGroup,
        step: int,
        later: bool,
        began_from: float | None = None,
    ) -> None:
        self.step, self._replica_group, self._began_from = step, replica_group, began_from
        bits, counted = sums.view(torch.int64), step % 2**STEP_BITS << KIND_BITS
        marks = [torch.full_like(bits[0], counted | kind) for kind in kinds]  # by kernels: a copy from the host waits
        self._table = table = self._gathered(torch.stack([bits, torch.stack(marks)], 1))
        self.ok: Tensor | None = None
        self._looked = False
        self._copied: torch.cuda.Event | None = None
        if later:
            finite = table[:, 0].view(torch.float64).isfinite()
            self.ok = (finite & (table[:, 1] == table[0, 1])).all().to(sums.device)
        if later and table.is_cuda:
            self._table = torch.empty(table.shape, dtype=table.dtype, pin_memory=True).copy_(table, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(table.device))
        elif not later:
            self.look()

    def alike(self) -> bool:
        """Waits, and returns whether the tensors of all replicas are of the same dtypes and shapes, at one step."""
        return len(set(self._arrived()[:, 1].tolist())) == 1

    def look(self) -> None:
        """Waits until what the ranks said has come; warns of replicas that are all the same, see `began_from`.

        Raises:
            UnlikeReplicasError: ranks that are at different steps; tensors that were replaced by others of another
                dtype or shape, registered or removed, on some ranks only.
            NotFiniteError: inf or NaN in a tensor; names the replicas.
        """
        if self._looked:
            return
        table = self._arrived()
        sums, marks = table[:, 0].view(torch.float64).tolist(), table[:, 1].tolist()
        other = next((replica for replica, mark in enumerate(marks) if mark != marks[0]), None)
        if other is not None:
            self._refuse(other, marks[other], marks[0])
        bad = [replica for replica, each in enumerate(sums) if not math.isfinite(each)]
        if bad:
            which = "replica " + str(bad[0]) if len(bad) == 1 else "replicas " + ", ".join(map(str, bad))
            raise NotFiniteError(
                f"{which} not finite after iteration {self.step}: lower the learning rate, clip the "
                f"gradient or use bf16 instead of fp16"
            )
        self._looked = True
        if self._began_from is not None and len(sums) > 1 and set(sums) == {sums[0]} != {self._began_from}:
            self._warn()

    def _refuse(self, other: int, mark: int, first: int) -> None:
        """Raises UnlikeReplicasError: a replica has another mark than the first."""
        steps, expected = mark >> KIND_BITS, first >> KIND_BITS
        if steps != expected:
            rank = next(r for r in range(self._replica_group.ranks) if other < self._replica_group.first_of(r + 1))
            raise UnlikeReplicasError(
                f"rank {rank} averages after step {steps} and rank 0 after step {expected}: call step() on every rank "
                "equally often, and average(), averaged() and check_finite() on all of them or on none"
            )
        raise UnlikeReplicasError(
            f"replica {other} has parameters or buffers of other dtypes or shapes, or others, than replica 0 has: "
            "change all replicas alike"
        )

    def _warn(self) -> None:
        """Warns, on one rank."""
        if self._replica_group.rank == 0:
            warnings.warn(
                f"all {self._replica_group.replicas} replicas have the same weights after step {self.step}, before "
                "they are averaged: either something else averages their gradients (DDP: train the bare model instead; "
                "in Lightning, accelerate and Hugging Face's Trainer use lookaround_ddp.integrations), or they train "
                "on the same data with the same seeds; their mean is nothing new",
                stacklevel=2,
            )

    def _gathered(self, rows: Tensor) -> Tensor:
        """Gathers all replicas' rows; an error has a hint, since ranks that end early are not there."""
        try:
            return self._replica_group.gather(rows)
        except RuntimeError as error:
            error.args = (
                f"{error} (rank {self._replica_group.rank} waited for the other ranks in the average after step "
                f"{self.step}: unless one of them has failed, they called step() less often, or average() or "
                "averaged() not at all)",
            )
            raise

    def _arrived(self) -> Tensor:
        """Waits for what the ranks said: shape (replicas, 2), the bits of the sums, and step and kind."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._table
