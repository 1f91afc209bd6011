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
from functools import partial
from itertools import cycle
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.members import Members, Slot

BLOCK_ELEMENTS = 2**17  # on a CPU the fp64 sum stays in the cache

NOTHING = range(0)

Layout = tuple[int, ...]  # a tensor's dimensions from the largest stride to the smallest


def broadcast_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites `tensors`, of any dtype and memory layout, with those of the group's first rank."""
    if group is None or dist.get_world_size(group) == 1:
        return
    for tensor in tensors:
        flat = _flat(tensor, tuple(range(tensor.dim())))
        dist.broadcast(flat.view(torch.uint8), group=group, group_src=0)
        _write_back(tensor, tuple(range(tensor.dim())), flat)


def layout_of(tensor: Tensor) -> Layout:
    """The order of dimensions in which the tensor's memory is one piece, if it has no gaps."""
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def average_(
    rows: Sequence[Sequence[Tensor]],
    layouts: Sequence[Layout],
    members: Members,
    *,
    exact: bool = True,
    write: Literal["mean", "first", "difference"] = "mean",
    measured: range = NOTHING,
    done: Callable[[int], None] = lambda column: None,
) -> Tensor | None:
    """Replaces replicas by their mean, in place, one tensor after the other.

    Args:
        rows: the tensors of each hosted replica, floating-point or complex; shapes, dtypes and order are
            the same in every row on every rank.
        layouts: the order in which to traverse each tensor, the same on every rank. A tensor that is laid
            out in another way is averaged just as well, through a copy.
        members: where the replicas live.
        exact: sum in fp64 in replica order; otherwise leave the sum to the backend's all-reduce.
        write: the mean into every row, or into the first alone and leave the others; or into every row what leads
            from its old values to the mean.
        measured: measure the replicas' distances to the mean, over these of the tensors.
        done: called with the number of each tensor when all rows have their new values of it.

    Returns:
        Squared L2 distances of the replicas to their mean, shape (replicas,), fp64, the same on every
        rank; None if nothing is measured. Half-precision means are rounded from fp64 through fp32.
    """
    flats = [[_flat(t, layout) for t, layout in zip(row, layouts, strict=True)] for row in rows]
    device = flats[0][0].device if flats[0] else torch.device("cpu")
    squares = torch.zeros(members.hosted, dtype=torch.float64, device=device)

    def finish(bucket: Bucket, slot: Slot, staged: Tensor) -> None:
        mean = _exact_mean(slot) if exact else _all_reduce_mean(staged, members)
        means = mean.to(bucket.device).split([piece.numel() for piece in bucket.pieces[0]])
        for number, pieces in enumerate(bucket.pieces):
            for column, piece, part in zip(bucket.columns, pieces, means, strict=True):
                if column in measured:
                    _add_squares(squares[number], piece, part)
                if write == "difference":
                    torch.sub(part, piece, out=piece)
                elif write == "mean" or number == 0:
                    piece.copy_(part)
        for column in bucket.ended:
            for row, row_flats in zip(rows, flats, strict=True):
                _write_back(row[column], layouts[column], row_flats[column])
            done(column)

    for columns in _kinds(flats[0]):
        channel = members.channel(flats[0][columns[0]].device)
        under_way: deque[Callable[[], None]] = deque()
        for bucket, slot in zip(_buckets(flats, columns, channel.bucket_bytes), cycle(channel.slots), strict=False):
            staged = slot.stage(bucket.size, bucket.dtype)
            for row, pieces in zip(staged, bucket.pieces, strict=True):
                _pack(pieces, row)
            if exact:
                slot.send()
            under_way.append(partial(finish, bucket, slot, staged))
            if len(under_way) == len(channel.slots):  # while one bucket is summed, the next one is on its way
                under_way.popleft()()
        while under_way:
            under_way.popleft()()
    return members.gather(squares) if measured else None


def _flat(tensor: Tensor, layout: Layout) -> Tensor:
    """The elements in one dimension, in the layout's order: a view, or a copy where no view exists."""
    flat = tensor.detach()
    if flat.dim() != 1 or not flat.is_contiguous():
        flat = flat.permute(layout).reshape(-1).contiguous()
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat


def _write_back(tensor: Tensor, layout: Layout, flat: Tensor) -> None:
    """Copies `flat` into the tensor it was made from, if it is a copy of it and not a view."""
    if flat.data_ptr() != tensor.data_ptr():
        target = tensor.detach().permute(layout)
        target.copy_(flat.view(tensor.dtype).view(target.shape))


@dataclass
class Bucket:
    """Pieces of tensors, cut at the same places in each row, of one dtype and device."""

    dtype: torch.dtype
    device: torch.device
    pieces: list[list[Tensor]]  # of each row
    columns: list[int] = field(default_factory=list)  # which tensor each piece is of
    ended: list[int] = field(default_factory=list)  # the tensors of which this has the last piece
    size: int = 0  # elements of a row


def _kinds(flats: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of those that can share a bucket."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for column, flat in enumerate(flats):
        kinds.setdefault((flat.dtype, flat.device), []).append(column)
    return list(kinds.values())


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
            if stop < size and capacity >= BLOCK_ELEMENTS:
                stop -= stop % BLOCK_ELEMENTS
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


def _add_squares(total: Tensor, piece: Tensor, mean: Tensor) -> None:
    """Adds the squared distance, block by block."""
    for value, center in zip(_blocks(piece), _blocks(mean), strict=True):
        delta = (value - center).float()
        total += torch.dot(delta, delta)


def _exact_mean(slot: Slot) -> Tensor:
    """The mean of the bucket that was sent."""
    replicas, mine = slot.collect(), slot.shard()
    total = mine.new_empty(0, dtype=torch.float64)
    for block, *values in zip(_blocks(mine), *map(_blocks, replicas), strict=True):
        total.resize_(block.shape)
        block.copy_(_mean(values, total))
    return slot.distribute()


def _blocks(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(BLOCK_ELEMENTS) if flat.device.type == "cpu" else (flat,)


def _mean(values: list[Tensor], total: Tensor) -> Tensor:
    """In fp64, in the memory of `total`."""
    if values[0].dtype == torch.float64:  # no wider type to sum in: from an offset, equal replicas still change nothing
        total.zero_()
        for value in values[1:]:
            total += value - values[0]
        return torch.where(total == 0, values[0], values[0] + total / len(values))  # -0.0 stays -0.0
    total.copy_(values[0])
    for value in values[1:]:
        total += value
    return total.div_(len(values))


def _all_reduce_mean(staged: Tensor, members: Members) -> Tensor:
    """The backend's own sum, in its own order."""
    total = staged[0]
    for row in staged[1:]:
        total += row
    if members.group is not None:
        dist.all_reduce(total, group=members.group)
    return total.div_(members.replicas)
