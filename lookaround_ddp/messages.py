"""Buckets of tensors as point-to-point messages of the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.members import Members


class Messages:
    """Two buckets under way, so that one is on its way while the other is summed.

    Attributes:
        bucket_bytes: the most that a bucket may have of one replica.
    """

    def __init__(self, members: Members, device: torch.device) -> None:
        device = members.wire(device)
        self.bucket_bytes = max(members.bucket_bytes // 2 // 16 * 16, 16)  # whole elements of any dtype
        self.slots = [MessageSlot(members, device, self.bucket_bytes) for _ in range(2)]


class MessageSlot:
    """Carries a bucket, the same elements of every replica; its methods are called in the order in which they stand.

    All messages of a bucket are in flight together, so that no rank waits for another's turn.
    """

    def __init__(self, members: Members, device: torch.device, size: int) -> None:
        self.members = members
        self._staged = torch.empty(members.hosted, size, dtype=torch.uint8, device=device)
        shard = size // members.ranks // 16 * 16 + 16  # rounded up to whole elements of any dtype
        self._received = torch.empty(members.replicas - members.hosted, shard, dtype=torch.uint8, device=device)
        self._bucket = self._staged
        self._values: dict[tuple[int, int], Tensor] = {}
        self._sent: list[dist.Work] = []

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        """Where to put the hosted replicas' elements, shape (hosted, size)."""
        self._bucket = _rows(self._staged, size, dtype)
        return self._bucket

    def send(self) -> None:
        """Begins to hand each rank its shard of them."""
        rank, shards = self.members.rank, self.members.shards(self._bucket)
        self._values = {(rank, host): row for host, row in enumerate(shards[rank])}
        received = iter(_rows(self._received, shards[rank].shape[1], self._bucket.dtype))
        transfers = []
        for peer in self._peers():
            for host, row in enumerate(shards[peer]):
                self._values[peer, host] = next(received)
                transfers += self._transfer(dist.irecv, self._values[peer, host], peer)
                transfers += self._transfer(dist.isend, row, peer)
        self._sent = _begun(transfers)

    def collect(self) -> list[Tensor]:
        """This rank's shard of each of the d replicas, in replica order, each of shape (shard,)."""
        for work in self._sent:
            work.wait()
        return [self._values[place] for place in sorted(self._values)]

    def shard(self) -> Tensor:
        """Where to put the mean of this rank's shard; the memory of a collected one."""
        return self.members.shards(self._bucket[0])[self.members.rank]

    def distribute(self) -> Tensor:
        """The mean of the bucket, shape (size,), put together from all ranks' shards."""
        means, transfers = self.members.shards(self._bucket[0]), []
        for peer in self._peers():
            transfers += self._transfer(dist.irecv, means[peer], peer)
            transfers += self._transfer(dist.isend, means[self.members.rank], peer)
        for work in _begun(transfers):
            work.wait()
        return self._bucket[0]

    def _peers(self) -> list[int]:
        return [rank for rank in range(self.members.ranks) if rank != self.members.rank]

    def _transfer(self, operation: Callable[..., Any], view: Tensor, peer: int) -> list[dist.P2POp]:
        return [dist.P2POp(operation, view, group=self.members.group, group_peer=peer)] if view.numel() else []


def _begun(transfers: list[dist.P2POp]) -> list[dist.Work]:
    return dist.batch_isend_irecv(transfers) if transfers else []


def _rows(memory: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The first `size` elements of each row of bytes."""
    return memory[:, : size * dtype.itemsize].view(dtype)
