"""Means that come late, for slow networks: not as the new weights, but as corrections of those that trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lookaround_ddp.flat import FlatStorage
from lookaround_ddp.hidden import UnderWay
from lookaround_ddp.layout import Layout, kinds_of
from lookaround_ddp.members import Members


class Corrections:
    """phi_t - theta_j,t of the hosted replicas j, on their way.

    Their sum over all replicas is zero but for rounding, so the mean of the replicas is the same with and without them.

    Attributes:
        due: the step after which they are added; None if there are none.
        storage: of what they are made in.
    """

    def __init__(self, members: Members) -> None:
        self.due: int | None = None
        self.storage = FlatStorage(members)
        self._copies: list[list[Tensor]] = []
        self._values: list[list[Tensor]] = []
        self._under_way: UnderWay | None = None

    def copies_of(self, parameters: Sequence[Sequence[Tensor]], layouts: Sequence[Layout]) -> list[list[Tensor]]:
        """Of the hosted replicas' parameters as they are now, in memory that is used each time; collective."""
        if not self._copies or kinds_of(self._copies[0]) != kinds_of(parameters[0]):
            self._copies = [[parameter.detach().clone() for parameter in row] for row in parameters]
        else:
            for row, copies in zip(parameters, self._copies, strict=True):
                torch._foreach_copy_(copies, [parameter.detach() for parameter in row])
        self.storage.hold(self._copies, layouts)
        return self._copies

    def begin(self, values: list[list[Tensor]], under_way: UnderWay, due: int) -> None:
        """
        Args:
            values: of each hosted replica, what will be its corrections when the exchange has ended.
        """
        self._values, self._under_way, self.due = values, under_way, due

    def add_to(self, parameters: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Corrects the replicas' parameters; returns what the exchange did."""
        result = self._arrived()
        for row, values in zip(parameters, self._values, strict=True):
            for parameter, value in zip(row, values, strict=True):
                parameter.add_(value)
        self._forget()
        return result

    def of(self, hosted: int) -> list[Tensor] | None:
        """Those of a hosted replica, to be saved with it; None if there are none."""
        self._arrived()
        return self._values[hosted] if self._values else None

    def restore(self, hosted: int, values: list[Tensor] | None) -> None:
        """What `of` returned; for the hosted replicas in turn. `due` is part of `Lookaround.state_dict`."""
        if hosted == 0:
            self._forget()
        if values is not None:
            self._values.append(values)

    def drop(self) -> None:
        self._arrived()
        self._forget()

    def _arrived(self) -> Tensor | None:
        return None if self._under_way is None else self._under_way.wait()

    def _forget(self) -> None:
        self.due, self._values, self._under_way = None, [], None
