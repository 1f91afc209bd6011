"""The mean of d replicas over the ranks of a process group: the same bits on any number of ranks.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.) The
volume is that of a ring all-reduce: each rank fetches the d values of *its* shard in the stored
precision, forms the mean, and hands its shard to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.members import Channel, Members

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
    channels: dict[torch.device, Channel] = {}
    for columns, bucket, whole in _buckets(flats, members.bucket_bytes):
        first = bucket[0][0]
        if first.device not in channels:
            channels[first.device] = members.channel(first.device)
        channel = channels[first.device]
        staged = channel.stage(sum(piece.numel() for piece in bucket[0]), first.dtype)
        for row, pieces in zip(staged, bucket, strict=True):
            _pack(pieces, row)
        mean = _exact_mean(channel) if exact else _all_reduce_mean(staged, members)
        means = mean.to(first.device).split([piece.numel() for piece in bucket[0]])
        for number, pieces in enumerate(bucket):
            for column, piece, part in zip(columns, pieces, means, strict=True):
                if column in measured:
                    squares[number] += _squared_distance(piece, part)
                if write == "difference":
                    torch.sub(part, piece, out=piece)
                elif write == "mean" or number == 0:
                    piece.copy_(part)
        for column in columns if whole else columns[:-1]:
            for row, row_flats in zip(rows, flats, strict=True):
                _write_back(row[column], layouts[column], row_flats[column])
            done(column)
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


def _buckets(flats: list[list[Tensor]], most: int) -> Iterator[tuple[list[int], list[list[Tensor]], bool]]:
    """Cuts the rows, all at the same places, into buckets of one dtype and device.

    Yields the columns, in order, and for each row its pieces of them; and whether the last column ends with this.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for column, flat in enumerate(flats[0]):
        kinds.setdefault((flat.dtype, flat.device), []).append(column)
    for (dtype, _), columns in kinds.items():
        room = capacity = most // dtype.itemsize
        bucket: list[list[Tensor]] = [[] for _ in flats]
        cut: list[int] = []
        for column in columns:
            start, size = 0, flats[0][column].numel()
            while start < size:
                stop = min(size, start + room)
                for pieces, row in zip(bucket, flats, strict=True):
                    pieces.append(row[column] if stop - start == size else row[column][start:stop])
                cut.append(column)
                room -= stop - start
                start = stop
                if room == 0:
                    yield cut, bucket, start == size
                    cut, bucket, room = [], [[] for _ in flats], capacity
        if room < capacity:
            yield cut, bucket, True


def _pack(pieces: list[Tensor], row: Tensor) -> None:
    if pieces[0].device == row.device:
        torch.cat(pieces, out=row)
    else:
        row.copy_(torch.cat(pieces))


def _squared_distance(piece: Tensor, mean: Tensor) -> Tensor:
    """Summed in blocks that do not depend on the number of ranks."""
    total = torch.zeros((), dtype=torch.float64, device=mean.device)
    for value, center in zip(_blocks(piece), _blocks(mean), strict=True):
        delta = (value - center).float()
        total += torch.dot(delta, delta)
    return total


def _exact_mean(channel: Channel) -> Tensor:
    """The mean of the staged bucket."""
    replicas, mine = channel.collect(), channel.shard()
    total = mine.new_empty(0, dtype=torch.float64)
    for block, *values in zip(_blocks(mine), *map(_blocks, replicas), strict=True):
        total.resize_(block.shape)
        block.copy_(_mean(values, total))
    return channel.distribute()


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
