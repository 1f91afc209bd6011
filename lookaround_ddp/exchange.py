"""The mean of d replicas over the ranks of a process group: the same bits on any number of ranks.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.) The
volume is that of a ring all-reduce: each rank fetches the d values of *its* shard in the stored
precision, forms the mean, and hands its shard to the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 25 * 2**20  # the extra memory of an average; at 4 MB it takes 1.4 times as long (gloo, ResNet-50)
PACK_ELEMENTS = 2**16  # smaller tensors travel together: a message costs more than a copy
BLOCK_ELEMENTS = 2**18  # on a CPU the fp64 sum stays in the cache: 5 times faster than over 8.5 M elements at once

Layout = tuple[int, ...]  # a tensor's dimensions from the largest stride to the smallest


@dataclass(frozen=True)
class Members:
    """Where replicas live: rank r of `group` hosts the replicas r * hosted to (r + 1) * hosted - 1."""

    group: dist.ProcessGroup | None
    hosted: int = 1

    @property
    def ranks(self) -> int:
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def replicas(self) -> int:
        return self.ranks * self.hosted

    def wire(self, device: torch.device) -> torch.device:
        """The device whose memory the backend can send: gloo's send and receive take CPU tensors only."""
        on_device = self.group is None or device.type == "cpu" or "nccl" in dist.get_backend(self.group)
        return device if on_device else torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        """Shape (hosted, ...) on each rank -> (replicas, ...) on all of them."""
        if self.group is None:
            return values
        values = values.to(self.wire(values.device)).contiguous()
        out = values.new_empty(self.replicas, *values.shape[1:])
        dist.all_gather(list(out.split(self.hosted)), values, group=self.group)
        return out

    def gather_objects(self, value: object) -> list[object]:
        """One picklable value from each rank, in rank order."""
        out: list[object] = [value] * self.ranks
        if self.group is not None:
            dist.all_gather_object(out, value, group=self.group)
        return out


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
    spread: bool = True,
    measure: bool = False,
) -> Tensor | None:
    """Replaces replicas by their mean, in place.

    Args:
        rows: the tensors of each hosted replica, floating-point or complex; shapes, dtypes and order are
            the same in every row on every rank.
        layouts: the order in which to traverse each tensor, the same on every rank. A tensor that is laid
            out in another way is averaged just as well, through a copy.
        members: where the replicas live.
        exact: sum in fp64 in replica order; otherwise leave the sum to the backend's all-reduce.
        spread: write the mean into every row; otherwise into the first alone and leave the others.
        measure: measure the replicas' distances to the mean (exact averages only).

    Returns:
        Squared L2 distances of the replicas to their mean, shape (replicas,), fp64, the same on every
        rank; None if not measured. Half-precision means are rounded from fp64 through fp32.
    """
    flats = [[_flat(t, layout) for t, layout in zip(row, layouts, strict=True)] for row in rows]
    squares = None
    if measure and exact:
        device = flats[0][0].device if flats[0] else torch.device("cpu")
        squares = torch.zeros(members.replicas, dtype=torch.float64, device=members.wire(device))
    for bucket in _buckets(flats):
        regions = [_pack(pieces, members) for pieces in bucket]
        if exact:
            _exact_mean_(regions, members, squares)
        else:
            _all_reduce_mean_(regions, members)
        _unpack(bucket[0], regions[0], members)
        for pieces in bucket[1:] if spread else []:
            for piece, mean in zip(pieces, bucket[0], strict=True):
                piece.copy_(mean)
    for row, row_flats in zip(rows, flats, strict=True):
        for tensor, layout, flat in zip(row, layouts, row_flats, strict=True):
            _write_back(tensor, layout, flat)
    if squares is not None and members.group is not None:
        dist.all_reduce(squares, group=members.group)
    return squares


def _flat(tensor: Tensor, layout: Layout) -> Tensor:
    """The elements in one dimension, in the layout's order: a view, or a copy where no view exists."""
    flat = tensor.detach().permute(layout).reshape(-1).contiguous()
    return torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat


def _write_back(tensor: Tensor, layout: Layout, flat: Tensor) -> None:
    """Copies `flat` into the tensor it was made from, if it is a copy of it and not a view."""
    if flat.data_ptr() != tensor.data_ptr():
        target = tensor.detach().permute(layout)
        target.copy_(flat.view(tensor.dtype).view(target.shape))


def _buckets(flats: list[list[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Cuts the rows, all at the same places, into buckets of one dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for column, flat in enumerate(flats[0]):
        kinds.setdefault((flat.dtype, flat.device), []).append(column)
    for (dtype, _), columns in kinds.items():
        room = capacity = BUCKET_BYTES // dtype.itemsize
        bucket: list[list[Tensor]] = [[] for _ in flats]
        for column in columns:
            start, size = 0, flats[0][column].numel()
            while start < size:
                stop = min(size, start + room)
                for pieces, row in zip(bucket, flats, strict=True):
                    pieces.append(row[column][start:stop])
                room -= stop - start
                start = stop
                if room == 0:
                    yield bucket
                    bucket, room = [[] for _ in flats], capacity
        if room < capacity:
            yield bucket


def _packed(piece: Tensor, members: Members) -> bool:
    return piece.numel() < PACK_ELEMENTS or piece.device != members.wire(piece.device)


def _pack(pieces: list[Tensor], members: Members) -> list[Tensor]:
    """The memory regions to exchange: the large pieces where they are, the small ones in one copy."""
    small = [piece for piece in pieces if _packed(piece, members)]
    regions = [piece for piece in pieces if not _packed(piece, members)]
    if small:
        regions.append(torch.cat(small).to(members.wire(small[0].device)))
    return regions


def _unpack(pieces: list[Tensor], regions: list[Tensor], members: Members) -> None:
    small = [piece for piece in pieces if _packed(piece, members)]
    if small:
        for piece, mean in zip(small, regions[-1].split([p.numel() for p in small]), strict=True):
            piece.copy_(mean)


def _shard(regions: list[Tensor], rank: int, ranks: int) -> list[Tensor]:
    """Rank's share of the regions' elements, as views."""
    total = sum(region.numel() for region in regions)
    low, high = rank * total // ranks, (rank + 1) * total // ranks
    views, offset = [], 0
    for region in regions:
        start, stop = max(low - offset, 0), min(high - offset, region.numel())
        if start < stop:
            views.append(region[start:stop])
        offset += region.numel()
    return views


def _exact_mean_(regions: list[list[Tensor]], members: Members, squares: Tensor | None) -> None:
    """Writes the mean into the first hosted replica's regions; adds the replicas' squared distances."""
    shards = [_shard(row, members.rank, members.ranks) for row in regions]
    peers = [peer for peer in range(members.ranks) if peer != members.rank]
    values = {(members.rank, host): shard for host, shard in enumerate(shards)}
    hosts = [(peer, host) for peer in peers for host in range(members.hosted)]
    sizes = [view.numel() for view in shards[0]]
    for place, row in zip(hosts, regions[0][0].new_empty(len(hosts), sum(sizes)), strict=True):
        values[place] = list(row.split(sizes))
    transfers = _Transfers(members)
    for peer in peers:
        for host in range(members.hosted):
            transfers.receive(values[peer, host], peer)
            transfers.send(_shard(regions[host], peer, members.ranks), peer)
    transfers.run()

    ordered = [values[rank, host] for rank in range(members.ranks) for host in range(members.hosted)]
    for column, mine in enumerate(shards[0]):
        step = BLOCK_ELEMENTS if mine.device.type == "cpu" else mine.numel()
        for start in range(0, mine.numel(), step):
            block = [replica[column][start : start + step] for replica in ordered]
            mean = _mean(block)
            if squares is not None:
                for replica, value in enumerate(block):
                    delta = (value - mean).float()
                    squares[replica] += torch.dot(delta, delta)
            mine[start : start + step].copy_(mean)

    for peer in peers:
        transfers.receive(_shard(regions[0], peer, members.ranks), peer)
        transfers.send(shards[0], peer)
    transfers.run()


def _mean(values: list[Tensor]) -> Tensor:
    if values[0].dtype == torch.float64:  # no wider type to sum in: from an offset, equal replicas still change nothing
        offset = torch.zeros_like(values[0])
        for value in values[1:]:
            offset += value - values[0]
        return torch.where(offset == 0, values[0], values[0] + offset / len(values))  # -0.0 stays -0.0
    total = values[0].double()
    for value in values[1:]:
        total += value
    return (total / len(values)).to(values[0].dtype)


def _all_reduce_mean_(regions: list[list[Tensor]], members: Members) -> None:
    """The backend's own sum, in its own order."""
    for column, region in enumerate(regions[0]):
        for row in regions[1:]:
            region += row[column]
        if members.group is not None:
            dist.all_reduce(region, group=members.group)
        region /= members.replicas


class _Transfers:
    """Sends and receives that run together, so that no rank waits for another's turn."""

    def __init__(self, members: Members) -> None:
        self.group = members.group
        self.pending: list[dist.P2POp] = []

    def send(self, views: list[Tensor], peer: int) -> None:
        self.pending += [dist.P2POp(dist.isend, view, group=self.group, group_peer=peer) for view in views]

    def receive(self, views: list[Tensor], peer: int) -> None:
        self.pending += [dist.P2POp(dist.irecv, view, group=self.group, group_peer=peer) for view in views]

    def run(self) -> None:
        if self.pending:
            for work in dist.batch_isend_irecv(self.pending):
                work.wait()
        self.pending = []
