"""Delayed averaging, for slow networks: theta_j += phi_t - theta_{j,t}, `delay` steps after the mean of step t."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from lookaround_ddp.averaging.checks import UnlikeReplicasError, check_finite
from lookaround_ddp.averaging.collectives import NO_TENSORS, average_
from lookaround_ddp.averaging.overlap import OnTensorDone, UnderWay, begin
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, kinds_of


class Corrections:
    """The corrections phi_t - theta_{j,t} of the hosted replicas j, while they are exchanged and until they are added.

    Their sum over all replicas is zero but for rounding, so the mean of the replicas is the same with and without them.

    Args:
        members: the ranks, with the process group for exchanges that overlap other collectives.

    Attributes:
        due: the step after which they are added; None if there are none.
    """

    def __init__(self, members: ReplicaGroup) -> None:
        self.due: int | None = None
        self._members = members
        self._storage = FlatStorage(members)
        self._copies: list[list[Tensor]] = []
        self._values: list[list[Tensor]] = []
        self._under_way: UnderWay | None = None

    def begin(
        self,
        parameters: Sequence[Sequence[Tensor]],
        layouts: Sequence[Layout],
        step: int,
        due: int,
        *,
        exact: bool,
        measure: bool,
        overlap: bool,
    ) -> None:
        """Copies the parameters and begins the exchange of the copies, which overlaps what follows where it can.

        On a GPU the host waits until the copies have been checked.

        Args:
            parameters: of each hosted replica.
            layouts: the order of the elements of each.
            step: the number t of this one.
            due: the number of the step after which they are to be added.
            exact, measure: see `Lookaround`.
            overlap: see `overlap.begin`. Errors are raised when the corrections are added; at once without overlap,
                and on a GPU.
        """
        self.drop()
        copies = self._copies_of(parameters)

        def exchange(on_tensor_done: OnTensorDone | None) -> Tensor | None:
            check_finite(copies, self._members, step)
            if exact:
                self._storage.hold(copies, layouts)
            measured = range(len(copies[0])) if measure else NO_TENSORS
            where = copies, layouts, self._members, self._storage
            return average_(*where, exact=exact, write="difference", measured=measured, on_tensor_done=on_tensor_done)

        device = copies[0][0].device if copies[0] else torch.device("cpu")
        self._under_way = begin(exchange, len(copies[0]), device, overlap)
        self._values, self.due = copies, due

    def _copies_of(self, parameters: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Copies the parameters into buffers that are reused at every average step."""
        if not self._copies or kinds_of(self._copies[0]) != kinds_of(parameters[0]):
            self._copies = [[parameter.detach().clone() for parameter in row] for row in parameters]
        else:
            for row, copies in zip(parameters, self._copies, strict=True) if self._copies[0] else ():
                torch._foreach_copy_(copies, [parameter.detach() for parameter in row])
        return self._copies

    def add_to(self, parameters: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Corrects the replicas' parameters; returns what the exchange returned.

        Raises:
            FloatingPointError, UnlikeReplicasError: see `check_finite`; nothing is corrected then, or later.
        """
        try:
            result = self._arrived()
            for row, values in zip(parameters, self._values, strict=True):
                if row:  # PyTorch takes no empty list
                    torch._foreach_add_(list(row), [v.to(p.device) for p, v in zip(row, values, strict=True)])
        finally:
            self._clear()
        return result

    def of(self, hosted: int) -> list[Tensor] | None:
        """Returns the corrections of a hosted replica, to be saved with it; None if there are none."""
        self._arrived()
        return self._values[hosted] if self._values else None

    def restore(self, hosted: int, values: list[Tensor] | None) -> None:
        """Takes what `of` returned, for the hosted replicas in turn. `due` is part of `Lookaround.state_dict`."""
        if hosted == 0:
            self.drop()
        if values is not None:
            self._values.append(values)

    def drop(self) -> None:
        """Waits for the exchange, and discards its corrections."""
        with suppress(FloatingPointError, UnlikeReplicasError):  # nobody wants this mean any more
            self._arrived()
        self._clear()

    def _arrived(self) -> Tensor | None:
        """Waits for the exchange, if there is one, and returns what it returned."""
        return None if self._under_way is None else self._under_way.wait()

    def _clear(self) -> None:
        """Clears the corrections; the buffers are kept for the next ones."""
        self.due, self._values, self._under_way = None, [], None
