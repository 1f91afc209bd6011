"""Means that come late, for slow networks: not as the new weights, but as corrections of those that trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from lookaround_ddp.averaging.checks import UnlikeReplicasError, check_finite
from lookaround_ddp.averaging.collectives import NOTHING, average_
from lookaround_ddp.averaging.overlap import Done, UnderWay, begin
from lookaround_ddp.averaging.replica_group import Members
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, kinds_of


class Corrections:
    """phi_t - theta_j,t of the hosted replicas j, on their way.

    Their sum over all replicas is zero but for rounding, so the mean of the replicas is the same with and without them.

    Args:
        members: the ranks, and the group over which they exchange beside all else.

    Attributes:
        due: the step after which they are added; None if there are none.
    """

    def __init__(self, members: Members) -> None:
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
        aside: bool,
    ) -> None:
        """Begins the exchange that leads to them; all but the copying of the parameters goes on aside, if it can.

        On a GPU the host waits until the copies have been checked.

        Args:
            parameters: of each hosted replica.
            layouts: the order of the elements of each.
            step: the number t of this one.
            due: of the one after which they are to be added.
            exact, measure: see `Lookaround`.
            aside: see `hidden.begin`. What is wrong is raised when the corrections are added; at once if nothing can
                go on aside, and on a GPU.
        """
        self.drop()
        copies = self._copies_of(parameters)

        def exchange(done: Done | None) -> Tensor | None:
            check_finite(copies, self._members, step)
            if exact:
                self._storage.hold(copies, layouts)
            measured = range(len(copies[0])) if measure else NOTHING
            where = copies, layouts, self._members, self._storage
            return average_(*where, exact=exact, write="difference", measured=measured, done=done)

        device = copies[0][0].device if copies[0] else torch.device("cpu")
        self._under_way = begin(exchange, len(copies[0]), device, aside)
        self._values, self.due = copies, due

    def _copies_of(self, parameters: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """As they are now, in memory that is used each time."""
        if not self._copies or kinds_of(self._copies[0]) != kinds_of(parameters[0]):
            self._copies = [[parameter.detach().clone() for parameter in row] for row in parameters]
        else:
            for row, copies in zip(parameters, self._copies, strict=True) if self._copies[0] else ():
                torch._foreach_copy_(copies, [parameter.detach() for parameter in row])
        return self._copies

    def add_to(self, parameters: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Corrects the replicas' parameters; returns what the exchange did.

        Raises:
            FloatingPointError, UnlikeReplicasError: see `check_finite`; nothing is corrected then, or later.
        """
        try:
            result = self._arrived()
            for row, values in zip(parameters, self._values, strict=True):
                if row:  # PyTorch takes no empty list
                    torch._foreach_add_(list(row), [v.to(p.device) for p, v in zip(row, values, strict=True)])
        finally:
            self._forget()
        return result

    def of(self, hosted: int) -> list[Tensor] | None:
        """Those of a hosted replica, to be saved with it; None if there are none."""
        self._arrived()
        return self._values[hosted] if self._values else None

    def restore(self, hosted: int, values: list[Tensor] | None) -> None:
        """What `of` returned; for the hosted replicas in turn. `due` is part of `Lookaround.state_dict`."""
        if hosted == 0:
            self.drop()
        if values is not None:
            self._values.append(values)

    def drop(self) -> None:
        with suppress(FloatingPointError, UnlikeReplicasError):  # of a mean that nobody wants
            self._arrived()
        self._forget()

    def _arrived(self) -> Tensor | None:
        return None if self._under_way is None else self._under_way.wait()

    def _forget(self) -> None:
        self.due, self._values, self._under_way = None, [], None
