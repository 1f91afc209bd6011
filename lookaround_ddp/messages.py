"""Buckets of tensors as point-to-point messages of the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.members import Members

SLOTS = 3


class Messages:
    """Three buckets under way: while one is summed, and another unpacked, the link always has something to carry.

    Attributes:
        bucket_bytes: the most that a bucket may have of one replica.
    """

    def __init__(self, members: Members, device: torch.device) -> None:
        device = members.wire(device)
        self.bucket_bytes = max(members.bucket_bytes // SLOTS // 16 * 16, 16)  # whole elements of any dtype
        self.slots = [MessageSlot(members, device, self.bucket_bytes) for _ in range(SLOTS)]


class MessageSlot:
    """Carries a bucket, the same elements of every replica; its methods are called in the order in which they stand.

    All messages of a bucket are in flight together, so that no rank waits for another's turn.

    Attributes:
        bucket: the hosted replicas' elements, shape (hosted, size); later, in the first row, their mean.
    """

    def __init__(self, members: Members, device: torch.device, size: int) -> None:
        self.members = members
        self._staged = torch.empty(members.hosted, size, dtype=torch.uint8, device=device)
        shard = size // members.ranks // 16 * 16 + 16  # rounded up to whole elements of any dtype
        self._received = torch.empty(members.replicas - members.hosted, shard, dtype=torch.uint8, device=device)
        self.bucket = self._staged
        self._values: dict[tuple[int, int], Tensor] = {}
        self._under_way: list[dist.Work] = []

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        """Where to put the hosted replicas' elements."""
        self.bucket = _rows(self._staged, size, dtype)
        return self.bucket

    def send(self) -> None:
        """Begins to hand each rank its shard of them."""
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
        """This rank's shard of each of the d replicas, in replica order, each of shape (shard,)."""
        self._wait()
        return [self._values[place] for place in sorted(self._values)]

    def shard(self) -> Tensor:
        """Where to put the mean of this rank's shard; the memory of a collected one."""
        return self.members.shards(self.bucket[0])[self.members.rank]

    def distribute(self) -> None:
        """Begins to hand this rank's shard of the mean to all others."""
        means, transfers = self.members.shards(self.bucket[0]), []
        for peer in self._peers():
            transfers += self._transfer(dist.irecv, means[peer], peer)
            transfers += self._transfer(dist.isend, means[self.members.rank], peer)
        self._under_way = _begun(transfers)

    def mean(self) -> Tensor:
        """Of the bucket, shape (size,), put together from all ranks' shards."""
        self._wait()
        return self.bucket[0]

    def _wait(self) -> None:
        for work in self._under_way:
            work.wait()

    def _peers(self) -> list[int]:
        """From the next rank on, so that not all begin with the same one."""
        ranks = self.members.ranks
        return [(self.members.rank + step) % ranks for step in range(1, ranks)]

    def _transfer(self, operation: Callable[..., Any], view: Tensor, peer: int) -> list[dist.P2POp]:
        return [dist.P2POp(operation, view, group=self.members.group, group_peer=peer)] if view.numel() else []


def _begun(transfers: list[dist.P2POp]) -> list[dist.Work]:
    return dist.batch_isend_irecv(transfers) if transfers else []


def _rows(memory: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The first `size` elements of each row of bytes."""
    return memory[:, : size * dtype.itemsize].view(dtype)
