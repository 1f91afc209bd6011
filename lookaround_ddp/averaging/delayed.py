"""Delayed averaging, for slow networks: theta_j += phi_t - theta_{j,t}, `delay` steps after the mean of step t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging.average_step import AverageStep
from lookaround_ddp.averaging.background import UnderWay, begin_exchange
from lookaround_ddp.averaging.exchange import average_matrices_
from lookaround_ddp.averaging.matrix import Matrix
from lookaround_ddp.averaging.replica_group import ReplicaGroup, WeakGroup


class Corrections:
    """The corrections phi_t - theta_{j,t} of the hosted replicas j, while they are exchanged and until they are added.

    Their sum over all replicas is zero but for rounding, so the mean of the replicas is the same with and without them.

    Args:
        average: what averages the replicas.
        replica_group: the ranks, with the process group for exchanges that overlap other collectives.
        shards: see `Lookaround`.

    Attributes:
        due: the step after which they are added; None if there are none.
    """

    _shards = WeakGroup()

    def __init__(self, average: AverageStep, replica_group: ReplicaGroup, shards: dist.ProcessGroup | None) -> None:
        self.due: int | None = None
        self._average, self._replica_group, self._shards = average, replica_group, shards
        self._matrices: list[Matrix] = []
        self._values: list[list[Tensor]] = []  # of each hosted replica, as views of the matrices, or as restored
        self._under_way: UnderWay | None = None

    def begin(self, step: int, due: int, *, measure: bool) -> None:
        """Averages the running statistics, copies the parameters, and begins the exchange of the copies.

        It overlaps what follows where it can, which is wherever another thread or stream can exchange.

        Args:
            step: the number t of the replicas' last step.
            due: the number of the step after which the corrections are to be added.
            measure: see `Lookaround`.

        Raises:
            NotFiniteError, UnlikeReplicasError: see `AverageStep.check`; on a GPU perhaps later.
        """
        self.drop()
        average, rows = self._average, self._average.rows
        ok = average.check(step, average.later, compare=True).ok
        average.exchange(average.replica_group, ok, measure=False, part="buffers")
        rows.give()
        if not rows.holds_parameters_as(self._matrices):
            self._matrices = rows.parameters_alike()
        for copy, matrix in zip(self._matrices, rows.matrices, strict=True):
            copy.own.copy_(matrix.own[:, : matrix.buffers])

        def exchange() -> Tensor | None:
            self._replica_group.meet()  # all have made their copies
            return average_matrices_(
                self._matrices,
                self._replica_group,
                self._shards,
                ok=ok,
                exact=average.exact,
                measure=measure,
                write="difference",
            )

        self._under_way = begin_exchange(exchange, self._replica_group, average.device)
        self._values = [
            rows.parameters_in([matrix.own[hosted] for matrix in self._matrices])
            for hosted in range(self._replica_group.hosted)
        ]
        self.due = due

    @torch.no_grad()
    def add_to(self, parameters: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """Corrects the replicas' parameters; returns what the exchange returned, as `AverageStep.exchange` does.

        The corrections are zero if the replicas of step t could not be averaged, of which a GPU's host hears later.

        Raises:
            ValueError: the parameters have become others than those of step t.
        """
        try:
            distances = self._arrived()
            for row, values in zip(parameters, self._values, strict=True):
                if [parameter.shape for parameter in row] != [value.shape for value in values]:
                    raise ValueError(
                        "parameters have become others while their mean was on its way: change them right after "
                        "average(), which leaves none on its way, and call restart(); on all ranks"
                    )
            for row, values in zip(parameters, self._values, strict=True):
                if row:  # PyTorch takes no empty list
                    torch._foreach_add_(list(row), [v.to(p.device) for p, v in zip(row, values, strict=True)])
        finally:
            self._clear()
        return distances

    def of(self, hosted: int) -> list[Tensor] | None:
        """Returns the corrections of a hosted replica, to be saved with it; None if there are none."""
        self._arrived()
        if not self._values:
            return None
        return [value.clone() for value in self._values[hosted]]  # a view would drag all replicas' rows into its file

    def restore(self, hosted: int, values: list[Tensor] | None) -> None:
        """Takes what `of` returned, for the hosted replicas in turn. `due` is part of `Lookaround.state_dict`."""
        if hosted == 0:
            self.drop()
        if values is not None:
            self._values.append(values)

    def drop(self) -> None:
        """Waits for the exchange, and discards its corrections."""
        self._arrived()
        self._clear()

    def _arrived(self) -> Tensor | None:
        """Waits for the exchange, if there is one, and returns what it returned."""
        return None if self._under_way is None else self._under_way.wait()

    def _clear(self) -> None:
        """Clears the corrections; their memory is kept for the next ones."""
        self.due, self._values, self._under_way = None, [], None
