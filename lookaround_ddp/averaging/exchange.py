"""The mean of the rows of every dtype, by the way that fits where they lie, and the replicas' distances to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging import mean
from lookaround_ddp.averaging.collectives import gather_segments_, mean_by_all_reduce_, mean_by_collectives_
from lookaround_ddp.averaging.matrix import Matrix
from lookaround_ddp.averaging.mean import Task, Write, mean_within_reach_
from lookaround_ddp.averaging.replica_group import ReplicaGroup, size_of, wire

Exchanged = Literal["all", "buffers"]


def average_matrices_(
    matrices: Sequence[Matrix],
    replica_group: ReplicaGroup,
    shards: dist.ProcessGroup | None,
    *,
    ok: Tensor | None = None,
    exact: bool = True,
    measure: bool = False,
    write: Write = "mean",
    part: Exchanged = "all",
) -> Tensor | None:
    """Averages rows of one or more dtypes; see `AverageStep.exchange`. Collective."""
    total: Tensor | None = None
    for matrix in matrices:
        own = matrix.own
        start, stop = matrix.buffers if part == "buffers" else 0, matrix.columns
        low, high = _segment(start, stop, shards)
        blocks = -(-matrix.columns // mean.BLOCK_ELEMENTS)
        squares = own.new_zeros(blocks, replica_group.replicas, dtype=torch.float64) if measure else None
        way = mean_within_reach_ if len(matrix.rows) == replica_group.replicas else mean_by_collectives_
        way = way if exact else mean_by_all_reduce_
        way(matrix, replica_group, Task(low, high, write, None if ok is None else ok.to(own.device), squares))
        if shards is not None:
            rows = own[:1] if write == "first" else own
            gather_segments_(rows[:, start:stop], rows[:, low:high], shards, wire(shards, own.device))
        if squares is not None:
            measured = _summed(squares, replica_group, shards)
            total = measured if total is None else total + measured.to(total.device)
    if measure and total is None:
        return torch.zeros(replica_group.replicas, dtype=torch.float64)
    return total


def _segment(start: int, stop: int, shards: dist.ProcessGroup | None) -> tuple[int, int]:
    """Returns the columns that this rank of a replica averages, out of those from start to stop."""
    if shards is None:
        return start, stop
    size = (stop - start) // size_of(shards)
    return start + dist.get_rank(shards) * size, start + (dist.get_rank(shards) + 1) * size


def _summed(squares: Tensor, replica_group: ReplicaGroup, shards: dist.ProcessGroup | None) -> Tensor:
    """Sums squared distances of shape (blocks, replicas), each of which some rank has measured; collective."""
    device = squares.device
    for group in (replica_group.group, shards):
        if size_of(group) > 1:
            squares = squares.to(wire(group, device))
            dist.all_reduce(squares, group=group)  # but for cut blocks each number is zero on all ranks but one
    squares = squares.to(device)
    if device.type != "cpu":
        return squares.sum(0)
    total = torch.zeros(replica_group.replicas, dtype=torch.float64)
    for row in squares:  # in their order, so the bits do not depend on which rank measured which
        total += row
    return total
