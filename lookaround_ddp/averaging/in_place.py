"""The mean of replicas that are all within reach: of one process, or in memory that ranks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging.mean import Scratch, block_bounds
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.tensors import by_dtype

# "mean": overwrite every hosted replica; "first": only the first; "difference": write mean - old value into each
Write = Literal["mean", "first", "difference"]


def average_in_place_(
    replicas: Sequence[Sequence[Tensor]],
    members: ReplicaGroup,
    *,
    write: Write,
    measured: range,
    on_tensor_done: Callable[[int], None],
    per_bucket: bool,
) -> Tensor | None:
    """Averages in place: each rank sums its share of the elements where they lie, and writes to all replicas.

    Args:
        replicas: of each replica on all ranks, in order, the elements of its tensors, each of shape (elements,), real.
        members: the ranks.
        write, measured, on_tensor_done: see `collectives.average_`.
        per_bucket: synchronize the ranks after each bucket instead of once, so that tensors are reported as soon as
            they are done.

    Returns:
        Squared distances, as `collectives.average_` does.
    """
    targets = range(0, members.replicas, members.hosted if write == "first" else 1)
    scratches = {tensor.dtype: Scratch(tensor.dtype, tensor.device) for tensor in replicas[0]}
    distances = _Distances(members)
    _meet(members)  # from here on others write to this rank's replicas
    for columns in _groups(replicas[0], members.bucket_bytes if per_bucket else None):
        for block in _shared_out([(column, replicas[0][column].numel()) for column in columns], members.ranks):
            distances.blocks += block.column in measured
            if block.rank == members.rank:
                values = [row[block.column][block.start : block.stop] for row in replicas]
                scratch = scratches[values[0].dtype]
                mean = scratch.mean_of(values)
                if block.column in measured or write == "difference":
                    mean = scratch.rounded(mean)
                if block.column in measured:
                    distances.add([scratch.squared_distance(value, mean).item() for value in values])
                _write([values[replica] for replica in targets], mean, write)
        _meet(members)
        for column in columns:
            on_tensor_done(column)
    return distances.squared() if measured else None


def _write(values: Sequence[Tensor], mean: Tensor, write: Write) -> None:
    """Writes the mean of a block into the replicas' values of it, as `write` says."""
    if write == "difference":
        for value in values:
            torch.sub(mean, value, out=value)
    else:
        first, *others = values
        first.copy_(mean)  # rounds it
        for value in others:
            value.copy_(first)


class _Block(NamedTuple):
    """Elements of a tensor that are summed at a time, and the rank that does it."""

    column: int
    start: int
    stop: int
    rank: int


def _groups(row: Sequence[Tensor], enough: int | None) -> Iterator[list[int]]:
    """Yields the indices of the tensors to average before the ranks meet next: at least `enough` bytes; None: all."""
    group, size = [], 0
    for column in chain(*by_dtype(row)):
        if row[column].numel():
            group.append(column)
            size += row[column].nbytes
        if enough is not None and size >= enough:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shared_out(sizes: Sequence[tuple[int, int]], ranks: int) -> Iterator[_Block]:
    """Yields the blocks of tensors, given as (index, size), so that each rank in turn gets nearly as many elements."""
    elements, before = sum(size for _, size in sizes), 0
    for column, size in sizes:
        for start, stop in block_bounds(size):
            rank = (2 * before + start + stop) * ranks // (2 * elements)  # in whose share the block's middle lies
            yield _Block(column, start, stop, rank)
        before += size


def _meet(members: ReplicaGroup) -> None:
    """Waits until all ranks are here."""
    if members.ranks > 1:
        dist.all_reduce(torch.zeros(1), group=members.group)  # takes gloo two thirds of a barrier's time


class _Distances:
    """Distances of the replicas to their mean, measured block by block on different ranks.

    Attributes:
        blocks: how many have been measured so far, on any rank.
    """

    def __init__(self, members: ReplicaGroup) -> None:
        self.blocks = 0
        self._members = members
        self._found: list[list[float]] = []  # each replica's squared distance, of the blocks that this rank measured
        self._numbers: list[int] = []  # of these blocks

    def add(self, squares: list[float]) -> None:
        """Adds each replica's squared distance in the block that was counted last."""
        self._numbers.append(self.blocks - 1)
        self._found.append(squares)

    def squared(self) -> Tensor:
        """Returns the sums over all blocks, shape (replicas,), fp64. Collective.

        Summed in the order of the blocks, so the bits do not depend on which rank measured which.
        """
        table = torch.zeros(self.blocks, self._members.replicas, dtype=torch.float64)
        if self._found:
            table[self._numbers] = torch.tensor(self._found, dtype=torch.float64)
        if self._members.ranks > 1:
            dist.all_reduce(table, group=self._members.group)  # each number is zero on all ranks but one
        total = torch.zeros(self._members.replicas, dtype=torch.float64)
        for row in table:
            total += row
        return total
