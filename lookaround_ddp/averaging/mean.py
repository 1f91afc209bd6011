"""The mean of rows that are all within reach: of one process, or in memory that ranks share.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lookaround_ddp.averaging.matrix import UNIT, Matrix
from lookaround_ddp.averaging.replica_group import ReplicaGroup

BLOCK_ELEMENTS = 2**15  # on a CPU the fp64 sums stay in the cache; half and twice as many take a fifth longer

# "mean": overwrite every hosted replica; "first": only the first; "difference": write mean - old value into each
Write = Literal["mean", "first", "difference"]


@dataclass(frozen=True)
class Task:
    """What is to be averaged of a matrix, and how.

    Attributes:
        start, stop: the columns.
        write: what becomes of the replicas.
        ok: on the rows' device, whether to write at all; None: yes.
        squares: where to add the squared distances to the mean, shape (blocks of the matrix, replicas), fp64: those
            that this rank measures. None: they are not measured. Of running statistics there are none.
    """

    start: int
    stop: int
    write: Write = "mean"
    ok: Tensor | None = None
    squares: Tensor | None = None


class Scratch:
    """Memory for fp64 sums that is reused for each block: allocating it anew would cost time and fragment the heap."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._total, self._term = (torch.empty(0, dtype=torch.float64, device=device) for _ in range(2))
        self._rounded, self._delta = (torch.empty(0, dtype=dtype, device=device) for _ in range(2))

    def mean_of(self, values: Sequence[Tensor]) -> Tensor:
        """Returns the mean, rounded to the values' dtype, in memory that the next call reuses."""
        first, count = values[0], len(values)
        rounded = self._rounded.resize_(first.shape)
        if first.dtype == torch.float64:  # no wider type to sum in: from an offset, equal replicas still change nothing
            total = torch.zeros_like(first)
            for value in values[1:]:
                total += value - first
            return rounded.copy_(torch.where(total == 0, first, first + total / count))  # -0.0 stays -0.0
        total = self._total.resize_(first.shape).copy_(first)
        for value in values[1:]:
            total += value if value.device.type == "cuda" else self._term.resize_(first.shape).copy_(value)
        return rounded.copy_(total.div_(count))

    def squared_distance(self, value: Tensor, center: Tensor) -> Tensor:
        """Returns the squared L2 distance of a block to its mean; shape (), fp32."""
        delta = torch.sub(value, center, out=self._delta.resize_(value.shape)).float()
        return torch.dot(delta, delta)


def mean_within_reach_(matrix: Matrix, replica_group: ReplicaGroup, task: Task) -> None:
    """Averages in place: each rank sums its share of the columns where they lie, and writes to all replicas.

    Collective, if the rows lie in memory that ranks share: all must have met since these rows were written last, and
    have met again when this returns.
    """
    rows, scratch = matrix.rows, Scratch(matrix.rows.dtype, matrix.rows.device)
    teams = replica_group.teams
    targets: Sequence[int] = range(len(rows))
    if task.write == "first":
        targets = [replica_group.first_of(rank) for rank in range(replica_group.ranks)]
    unit = UNIT if task.squares is None else BLOCK_ELEMENTS
    for start, stop in blocks(*_share(task, replica_group, unit), rows.device):
        values = rows[:, start:stop].unbind(0)
        for team in teams:
            mean = scratch.mean_of(values[team.start : team.stop])
            measure(task, matrix, scratch, start, mean, {replica: values[replica] for replica in team})
            write_mean([values[replica] for replica in targets if replica in team], mean, task)
    replica_group.meet()


def measure(task: Task, matrix: Matrix, scratch: Scratch, start: int, mean: Tensor, values: dict[int, Tensor]) -> None:
    """Adds squared distances of replicas to their mean, of a block of columns from `start` on.

    Args:
        values: of the replicas that this rank measures, by number; each of shape (columns,), as the mean.
    """
    columns = min(matrix.parameters - start, len(mean))
    if task.squares is not None and columns > 0:
        for replica, value in values.items():
            square = scratch.squared_distance(value[:columns], mean[:columns])
            task.squares[start // BLOCK_ELEMENTS, replica] += square


def write_mean(values: Sequence[Tensor], mean: Tensor, task: Task) -> None:
    """Writes the mean of a block into replicas' values of it, as the task says."""
    for value in values:
        new = mean - value if task.write == "difference" else mean
        if task.ok is None:
            value.copy_(new)
        else:  # decided on the device, for which the host does not wait
            torch.where(task.ok, new, torch.zeros_like(value) if task.write == "difference" else value, out=value)


def _share(task: Task, replica_group: ReplicaGroup, unit: int) -> tuple[int, int]:
    """Returns the columns of this rank, out of the task's; shares end at multiples of `unit`."""
    base = task.start - task.start % unit
    units = -(-(task.stop - base) // unit)
    rank, ranks = replica_group.rank, replica_group.ranks
    start, stop = (base + each * units // ranks * unit for each in (rank, rank + 1))
    return max(start, task.start), min(stop, task.stop)


def blocks(start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Yields the columns that are summed at a time: all on a GPU."""
    size = BLOCK_ELEMENTS if device.type == "cpu" else max(stop - start, 1)
    while start < stop:
        end = min(start - start % size + size if device.type == "cpu" else stop, stop)
        yield start, end
        start = end
