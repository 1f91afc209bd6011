"""Buckets of tensors as point-to-point messages of the backend."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging import mean
from lookaround_ddp.averaging.in_place import Write
from lookaround_ddp.averaging.mean import Scratch, blocks
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.tensors import by_dtype

SLOTS = 3


class Messages:
    """Three buckets under way: while one is summed, and another unpacked, the link always has something to carry.

    Attributes:
        bucket_bytes: the most that a bucket may have of one replica.
    """

    def __init__(self, members: ReplicaGroup, device: torch.device) -> None:
        device = members.wire(device)
        self.bucket_bytes = max(members.bucket_bytes // SLOTS // 16 * 16, 16)  # whole elements of any dtype
        self.slots = [MessageSlot(members, device, self.bucket_bytes) for _ in range(SLOTS)]


class MessageSlot:
    """Carries a bucket, the same elements of every replica; its methods are called in the order in which they stand.

    All messages of a bucket are in flight together, so that no rank waits for another's turn.

    Attributes:
        bucket: the hosted replicas' elements, shape (hosted, size); later, in the first row, their mean.
    """

    def __init__(self, members: ReplicaGroup, device: torch.device, size: int) -> None:
        self.members = members
        self._staged = torch.empty(members.hosted, size, dtype=torch.uint8, device=device)
        shard = size // members.ranks // 16 * 16 + 16  # rounded up to whole elements of any dtype
        self._received = torch.empty(members.replicas - members.hosted, shard, dtype=torch.uint8, device=device)
        self.bucket = self._staged
        self._values: dict[tuple[int, int], Tensor] = {}
        self._under_way: list[dist.Work] = []

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        """Returns where to put the hosted replicas' elements, shape (hosted, size)."""
        self.bucket = _rows(self._staged, size, dtype)
        return self.bucket

    def send(self) -> None:
        """Begins to send each rank its shard of them."""
        rank, shards = self.members.rank, self.members.shards(self.bucket)
        self._values = {(rank, host): row for host, row in enumerate(shards[rank])}
        received = iter(_rows(self._received, shards[rank].shape[1], self.bucket.dtype))
        transfers = []
        for peer in self._peers():
            for host, row in enumerate(shards[peer]):
                self._values[peer, host] = next(received)
                transfers += self._transfer(dist.irecv, self._values[peer, host], peer)
                transfers += self._transfer(dist.isend, row, peer)
        self._under_way = _begun(transfers)

    def collect(self) -> list[Tensor]:
        """Waits for and returns this rank's shard of each of the d replicas, in replica order, of shape (shard,)."""
        self._wait()
        return [self._values[place] for place in sorted(self._values)]

    def shard(self) -> Tensor:
        """Returns where to put the mean of this rank's shard: the memory of a collected one."""
        return self.members.shards(self.bucket[0])[self.members.rank]

    def distribute(self) -> None:
        """Begins to send this rank's shard of the mean to all others."""
        means, transfers = self.members.shards(self.bucket[0]), []
        for peer in self._peers():
            transfers += self._transfer(dist.irecv, means[peer], peer)
            transfers += self._transfer(dist.isend, means[self.members.rank], peer)
        self._under_way = _begun(transfers)

    def mean(self) -> Tensor:
        """Waits for all ranks' shards and returns the mean of the bucket, shape (size,)."""
        self._wait()
        return self.bucket[0]

    def _wait(self) -> None:
        """Waits for the messages that were begun last."""
        for work in self._under_way:
            work.wait()

    def _peers(self) -> list[int]:
        """Returns the other ranks, from the next one on, so that not all begin with the same one."""
        ranks = self.members.ranks
        return [(self.members.rank + step) % ranks for step in range(1, ranks)]

    def _transfer(self, operation: Callable[..., Any], view: Tensor, peer: int) -> list[dist.P2POp]:
        """Describes a message; none where it would be empty."""
        return [dist.P2POp(operation, view, group=self.members.group, group_peer=peer)] if view.numel() else []


def _begun(transfers: list[dist.P2POp]) -> list[dist.Work]:
    """Starts the transfers together."""
    return dist.batch_isend_irecv(transfers) if transfers else []


def _rows(memory: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Returns the first `size` elements of each row of bytes."""
    return memory[:, : size * dtype.itemsize].view(dtype)


def _average_by_messages_(
    flats: list[list[Tensor]],
    members: ReplicaGroup,
    exact: bool,
    write: Write,
    measured: range,
    on_tensor_done: Callable[[int], None],
) -> Tensor | None:
    """Averages the hosted replicas' elements bucket by bucket; see `collectives.average_`."""
    device = flats[0][0].device
    squares = torch.zeros(members.hosted, dtype=torch.float64, device=device)

    def start(bucket: Bucket, slot: MessageSlot) -> None:
        """Packs the bucket, and begins to send the other ranks their shards of it."""
        for row, pieces in zip(slot.stage(bucket.size, bucket.dtype), bucket.pieces, strict=True):
            _pack(pieces, row)
        if exact:
            slot.send()

    def reduce(slot: MessageSlot) -> None:
        """Forms the mean of this rank's shard, and begins to send it to the others."""
        if exact:
            _sum_exactly(slot)
            slot.distribute()
        else:
            _all_reduce_mean_(slot.bucket, members)

    def finish(bucket: Bucket, slot: MessageSlot) -> None:
        """Waits for the whole mean, measures the distances, and unpacks it into the tensors."""
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
            on_tensor_done(column)

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
    """Copies the pieces into the row, one after the other."""
    if pieces[0].device == row.device:
        torch.cat(pieces, out=row)
    else:
        row.copy_(torch.cat(pieces))


def _sum_exactly(slot: MessageSlot) -> None:
    """Forms this rank's shard of the mean of the bucket that was sent."""
    replicas, mine = slot.collect(), slot.shard()
    scratch = Scratch(mine.dtype, mine.device)
    for block, *values in zip(blocks(mine), *map(blocks, replicas), strict=True):
        block.copy_(scratch.mean_of(values))


def _all_reduce_mean_(staged: Tensor, members: ReplicaGroup) -> None:
    """Writes the mean into the first row, summed by the backend in its own order."""
    total = staged[0]
    for row in staged[1:]:
        total += row
    if members.group is not None:
        dist.all_reduce(total, group=members.group)
    total.div_(members.replicas)
