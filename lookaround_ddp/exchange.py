"""The mean of d replicas over the ranks of a process group: the same bits on any number of ranks.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.) The
volume is that of a ring all-reduce: each rank fetches the d values of *its* shard in the stored
precision, forms the mean, and hands its shard to the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from lookaround_ddp import mean
from lookaround_ddp.flat import FlatStorage
from lookaround_ddp.in_place import Write, average_in_place_
from lookaround_ddp.layout import Layout, by_dtype, flat_of, write_back
from lookaround_ddp.mean import Scratch, blocks
from lookaround_ddp.members import Members
from lookaround_ddp.messages import Messages, MessageSlot

NOTHING = range(0)


def broadcast_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites `tensors`, of any dtype and memory layout, with those of the group's first rank."""
    if group is None or dist.get_world_size(group) == 1:
        return
    for tensor in tensors:
        flat = flat_of(tensor, tuple(range(tensor.dim())))
        dist.broadcast(flat.view(torch.uint8), group=group, group_src=0)
        write_back(tensor, tuple(range(tensor.dim())), flat)


def average_(
    rows: Sequence[Sequence[Tensor]],
    layouts: Sequence[Layout],
    members: Members,
    storage: FlatStorage | None = None,
    *,
    exact: bool = True,
    write: Write = "mean",
    measured: range = NOTHING,
    done: Callable[[int], None] | None = None,
) -> Tensor | None:
    """Replaces replicas by their mean, in place, one tensor after the other.

    Args:
        rows: the tensors of each hosted replica, floating-point or complex; shapes, dtypes and order are
            the same in every row on every rank.
        layouts: the order in which to traverse each tensor, the same on every rank. A tensor that is laid
            out in another way is averaged just as well, through a copy.
        members: where the replicas live.
        storage: that holds these tensors, if one does.
        exact: sum in fp64 in replica order; otherwise leave the sum to the backend's all-reduce.
        write: the mean into every row, or into the first alone and leave the others; or into every row what leads
            from its old values to the mean.
        measured: measure the replicas' distances to the mean, over these of the tensors.
        done: called with the number of each tensor when all rows have their new values of it, if somebody waits.

    Returns:
        Squared L2 distances of the replicas to their mean, shape (replicas,), fp64, the same on every
        rank; None if nothing is measured. Half-precision means are rounded from fp64 through fp32.
    """
    if not rows[0]:
        return members.gather(torch.zeros(members.hosted, dtype=torch.float64)) if measured else None
    shared = storage.rows if exact and storage is not None else None
    if shared is not None:
        first = members.rank * members.hosted
        flats = shared[first : first + members.hosted]
    else:
        flats = [[flat_of(t, layout) for t, layout in zip(row, layouts, strict=True)] for row in rows]

    def ended(column: int) -> None:
        for row, row_flats in zip(rows, flats, strict=True):
            write_back(row[column], layouts[column], row_flats[column])
            increment_version(row[column])  # autograd cannot see what other ranks write, and must refuse what is stale
        if done is not None:
            done(column)

    if shared is None and exact and members.ranks == 1 and rows[0][0].device.type == "cpu":
        shared = flats  # on a GPU larger pieces than a tensor keep it busy
    if shared is not None:
        hurried = done is not None
        return average_in_place_(shared, members, write=write, measured=measured, done=ended, hurried=hurried)
    return _average_by_messages_(flats, members, exact, write, measured, ended)


def _average_by_messages_(
    flats: list[list[Tensor]],
    members: Members,
    exact: bool,
    write: Write,
    measured: range,
    done: Callable[[int], None],
) -> Tensor | None:
    """The same of the hosted replicas' elements, bucket by bucket."""
    device = flats[0][0].device
    squares = torch.zeros(members.hosted, dtype=torch.float64, device=device)

    def start(bucket: Bucket, slot: MessageSlot) -> None:
        for row, pieces in zip(slot.stage(bucket.size, bucket.dtype), bucket.pieces, strict=True):
            _pack(pieces, row)
        if exact:
            slot.send()

    def reduce(slot: MessageSlot) -> None:
        if exact:
            _sum_exactly(slot)
            slot.distribute()
        else:
            _all_reduce_mean_(slot.bucket, members)

    def finish(bucket: Bucket, slot: MessageSlot) -> None:
        whole = slot.mean()
        scratch = Scratch(bucket.dtype, bucket.device)
        means = whole.to(bucket.device).split([piece.numel() for piece in bucket.pieces[0]])
        for number, pieces in enumerate(bucket.pieces):
            for column, piece, part in zip(bucket.columns, pieces, means, strict=True):
                if column in measured:
                    for value, center in zip(blocks(piece), blocks(part), strict=True):
                        squares[number] += scratch.squared_distance(value, center)
                if write == "difference":
                    torch.sub(part, piece, out=piece)
                elif write == "mean" or number == 0:
                    piece.copy_(part)
        for column in bucket.ended:
            done(column)

    for columns in by_dtype(flats[0]):
        channel = Messages(members, flats[0][columns[0]].device)
        under_way: deque[tuple[Bucket, MessageSlot]] = deque()
        for bucket, slot in zip(_buckets(flats, columns, channel.bucket_bytes), cycle(channel.slots), strict=False):
            if len(under_way) == len(channel.slots):
                finish(*under_way.popleft())
            start(bucket, slot)
            if under_way:
                reduce(under_way[-1][1])
            under_way.append((bucket, slot))
        if under_way:
            reduce(under_way[-1][1])
        while under_way:
            finish(*under_way.popleft())
    return members.gather(squares) if measured else None


@dataclass
class Bucket:
    """Pieces of tensors, cut at the same places in each row, of one dtype and device."""

    dtype: torch.dtype
    device: torch.device
    pieces: list[list[Tensor]]  # of each row
    columns: list[int] = field(default_factory=list)  # which tensor each piece is of
    ended: list[int] = field(default_factory=list)  # the tensors of which this has the last piece
    size: int = 0  # elements of a row


def _buckets(flats: list[list[Tensor]], columns: Sequence[int], most: int) -> Iterator[Bucket]:
    """Cuts these columns of the rows into buckets of so many bytes.

    Tensors are cut between blocks, where that is possible, so that sums over blocks do not depend on the buckets.
    """
    first = flats[0][columns[0]]
    capacity = most // first.dtype.itemsize

    def empty() -> Bucket:
        return Bucket(first.dtype, first.device, [[] for _ in flats])

    bucket = empty()
    for column in columns:
        start, size = 0, flats[0][column].numel()
        while start < size:
            stop = min(size, start + capacity - bucket.size)
            if stop < size and capacity >= mean.BLOCK_ELEMENTS:
                stop -= stop % mean.BLOCK_ELEMENTS
            if stop > start:
                for pieces, row in zip(bucket.pieces, flats, strict=True):
                    pieces.append(row[column] if stop - start == size else row[column][start:stop])
                bucket.columns.append(column)
                bucket.size += stop - start
                start = stop
            if start == size:
                bucket.ended.append(column)
            else:
                yield bucket
                bucket = empty()
    if bucket.size:
        yield bucket


def _pack(pieces: list[Tensor], row: Tensor) -> None:
    if pieces[0].device == row.device:
        torch.cat(pieces, out=row)
    else:
        row.copy_(torch.cat(pieces))


def _sum_exactly(slot: MessageSlot) -> None:
    """This rank's shard of the mean of the bucket that was sent."""
    replicas, mine = slot.collect(), slot.shard()
    scratch = Scratch(mine.dtype, mine.device)
    for block, *values in zip(blocks(mine), *map(blocks, replicas), strict=True):
        block.copy_(scratch.mean_of(values))


def _all_reduce_mean_(staged: Tensor, members: Members) -> None:
    """The mean into the first row: the backend's own sum, in its own order."""
    total = staged[0]
    for row in staged[1:]:
        total += row
    if members.group is not None:
        dist.all_reduce(total, group=members.group)
    total.div_(members.replicas)
