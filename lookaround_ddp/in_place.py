"""The mean of replicas that are all within reach: of one process, or in memory that ranks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.layout import by_dtype
from lookaround_ddp.mean import blocks, mean_of, squared_distance
from lookaround_ddp.members import Members

Write = Literal["mean", "first", "difference"]  # the mean into all replicas or a rank's first; or what leads to it


def average_in_place_(
    replicas: Sequence[Sequence[Tensor]],
    members: Members,
    *,
    write: Write,
    measured: range,
    done: Callable[[int], None],
) -> Tensor | None:
    """Each rank sums its share of the elements where they lie, and writes to all replicas.

    Args:
        replicas: of each replica on all ranks, in order, the elements of its tensors, each of shape (elements,), real.
        members: the ranks.
        write, measured, done: see `exchange.average_`.

    Returns:
        Squared distances, as `exchange.average_` does.
    """
    targets = range(0, members.replicas, members.hosted if write == "first" else 1)
    total = torch.empty(0, dtype=torch.float64)
    squares: list[Tensor] = []  # of each block that is measured
    _meet(members)  # from here on others write to this rank's replicas
    for columns in _groups(replicas[0], members.bucket_bytes):
        for block in _shared_out(columns, replicas, members.ranks):
            square = torch.zeros(members.replicas, dtype=torch.float64)
            if block.rank == members.rank:
                mean = mean_of(block.values, total).to(block.values[0].dtype)
                if block.column in measured:
                    square += torch.stack([squared_distance(value, mean) for value in block.values])
                for replica in targets:
                    value = block.values[replica]
                    if write == "difference":
                        torch.sub(mean, value, out=value)
                    else:
                        value.copy_(mean)
            if block.column in measured:
                squares.append(square)
        _meet(members)
        for column in columns:
            done(column)
    return _sum(squares, members) if measured else None


class _Block(NamedTuple):
    """Elements of a tensor that are summed at a time, of each replica, and the rank that does it."""

    column: int
    values: tuple[Tensor, ...]
    rank: int


def _groups(row: Sequence[Tensor], most: int) -> Iterator[list[int]]:
    """The numbers of the tensors that are averaged before the ranks meet; with so many bytes it is time to."""
    for columns in by_dtype(row):
        group, size = [], 0
        for column in columns:
            if row[column].numel():
                group.append(column)
                size += row[column].nbytes
            if size >= most:
                yield group
                group, size = [], 0
        if group:
            yield group


def _shared_out(columns: Sequence[int], replicas: Sequence[Sequence[Tensor]], ranks: int) -> Iterator[_Block]:
    """The blocks of these tensors, the first of them for the first rank, and as many elements for each, nearly."""
    elements, before = sum(replicas[0][column].numel() for column in columns), 0
    for column in columns:
        for values in zip(*(blocks(row[column]) for row in replicas), strict=True):
            middle = before + len(values[0]) / 2
            yield _Block(column, values, int(middle * ranks / elements))
            before += len(values[0])


def _meet(members: Members) -> None:
    """Until all ranks are here."""
    if members.ranks > 1:
        dist.all_reduce(torch.zeros(1), group=members.group)  # takes gloo two thirds of a barrier's time


def _sum(squares: Sequence[Tensor], members: Members) -> Tensor:
    """In the order of the blocks, so that it has the same bits wherever they were squared."""
    table = torch.stack(list(squares)) if squares else torch.zeros(0, members.replicas, dtype=torch.float64)
    if members.ranks > 1:
        dist.all_reduce(table, group=members.group)  # each number is zero on all ranks but one
    total = torch.zeros(members.replicas, dtype=torch.float64)
    for row in table:
        total += row
    return total
