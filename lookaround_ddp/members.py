"""Where the replicas live, and how the ranks of a group hand each other parts of them."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

# Of one replica. An average step's extra memory is one to two buckets for each replica of a rank; with a third of it
# a step takes 1.3 times as long, since the ranks wait for each other more often (ResNet-50, 3 ranks on 2 cores).
BUCKET_BYTES = 34 * 2**20


@dataclass(frozen=True)
class Members:
    """Where replicas live: rank r of `group` hosts the replicas r * hosted to (r + 1) * hosted - 1.

    Args:
        group: the ranks; None is this process alone.
        hosted: replicas on each rank.
        share: let ranks of one machine exchange CPU tensors through memory that they share.
        bucket_bytes: of one replica, that are exchanged at a time.
    """

    group: dist.ProcessGroup | None
    hosted: int = 1
    share: bool = True
    bucket_bytes: int = field(default_factory=lambda: BUCKET_BYTES)

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

    def gather_objects(self, value: Any) -> list[Any]:
        """One picklable value from each rank, in rank order."""
        out = [value] * self.ranks
        if self.group is not None:
            dist.all_gather_object(out, value, group=self.group)
        return out

    def shards(self, elements: Tensor) -> list[Tensor]:
        """Cuts the last dimension into a share for each rank."""
        size = elements.shape[-1]
        bounds = [rank * size // self.ranks for rank in range(self.ranks + 1)]
        return [elements[..., low:high] for low, high in pairwise(bounds)]

    def channel(self, device: torch.device) -> Channel:
        """The fastest way to exchange tensors of a device. Collective."""
        device = self.wire(device)
        if device.type == "cpu" and self.ranks > 1 and self.share and self._shared_memory is not None:
            return self._shared_memory
        return Messages(self, device)

    @cached_property
    def _shared_memory(self) -> SharedMemory | None:
        return SharedMemory.open(self)


class Slot(Protocol):
    """Carries a bucket: the same elements of every replica. The calls take turns, in this order."""

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        """Where to put the hosted replicas' elements, shape (hosted, size)."""

    def send(self) -> None:
        """Begins to hand each rank its shard of them."""

    def collect(self) -> list[Tensor]:
        """This rank's shard of each of the d replicas, in replica order, each of shape (shard,). Collective."""

    def shard(self) -> Tensor:
        """Where to put the mean of this rank's shard; it may be the memory of a collected one."""

    def distribute(self) -> Tensor:
        """The mean of the bucket, shape (size,), put together from all ranks' shards. Collective."""


class Channel(Protocol):
    """As many slots as buckets can be under way at a time, each of so many bytes of one replica."""

    bucket_bytes: int

    @property
    def slots(self) -> Sequence[Slot]: ...


class Messages:
    """Point-to-point messages of the backend: two buckets, so that one is on its way while the other is summed."""

    def __init__(self, members: Members, device: torch.device) -> None:
        self.bucket_bytes = max(members.bucket_bytes // 2 // 16 * 16, 16)  # whole elements of any dtype
        self.slots = [MessageSlot(members, device, self.bucket_bytes) for _ in range(2)]


class MessageSlot:
    """All messages of a bucket are in flight together, so that no rank waits for another's turn."""

    def __init__(self, members: Members, device: torch.device, size: int) -> None:
        self.members = members
        self._staged = torch.empty(members.hosted, size, dtype=torch.uint8, device=device)
        shard = size // members.ranks // 16 * 16 + 16  # rounded up to whole elements of any dtype
        self._received = torch.empty(members.replicas - members.hosted, shard, dtype=torch.uint8, device=device)
        self._bucket = self._staged
        self._values: dict[tuple[int, int], Tensor] = {}
        self._sent: list[dist.Work] = []

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        self._bucket = _rows(self._staged, size, dtype)
        return self._bucket

    def send(self) -> None:
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
        for work in self._sent:
            work.wait()
        return [self._values[place] for place in sorted(self._values)]

    def shard(self) -> Tensor:
        return self.members.shards(self._bucket[0])[self.members.rank]

    def distribute(self) -> Tensor:
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


class SharedMemory:
    """Memory that all ranks of one machine see: a row for the bucket of each replica, and one for its mean.

    The next bucket can be staged while others still read this one's mean: the mean's row is written to
    after they have all staged theirs.

    An anonymous file backs it, which is gone with the last process that holds it, however that ends.
    """

    def __init__(self, members: Members, memory: mmap.mmap) -> None:
        self.members = members
        self.bucket_bytes = members.bucket_bytes
        self._memory = torch.frombuffer(memory, dtype=torch.uint8).view(members.replicas + 1, -1)
        self._bucket = self._memory
        self._arrived = torch.zeros(1)

    @classmethod
    def open(cls, members: Members) -> SharedMemory | None:
        """None, on all ranks, where they do not share a machine or the system has no such memory. Collective."""
        size = (members.replicas + 1) * members.bucket_bytes
        offer = _Offer.make(size) if members.rank == 0 else _Offer()
        try:
            offers: list[Any] = members.gather_objects(offer)
            memory = offers[0].map(size)
            everywhere = all(members.gather_objects(memory is not None))
        finally:
            offer.close()
        return cls(members, memory) if memory is not None and everywhere else None

    @property
    def slots(self) -> list[SharedMemory]:
        return [self]

    def stage(self, size: int, dtype: torch.dtype) -> Tensor:
        self._bucket = _rows(self._memory, size, dtype)
        first = self.members.rank * self.members.hosted
        return self._bucket[first : first + self.members.hosted]

    def send(self) -> None:
        """Others see it as it is."""

    def collect(self) -> list[Tensor]:
        self._wait_for_all()
        return list(self.members.shards(self._bucket[:-1])[self.members.rank])

    def shard(self) -> Tensor:
        return self.members.shards(self._bucket[-1])[self.members.rank]

    def distribute(self) -> Tensor:
        self._wait_for_all()
        return self._bucket[-1]

    def _wait_for_all(self) -> None:
        dist.all_reduce(self._arrived, group=self.members.group)  # takes gloo two thirds of a barrier's time


@dataclass(frozen=True)
class _Offer:
    """An anonymous file of a process, which others on its machine can open while it has it open."""

    machine: tuple[str, int] | None = None
    process: int = 0
    file: int = -1
    token: bytes = b""

    @classmethod
    def make(cls, size: int) -> _Offer:
        """No offer (which nobody can map) where the system has no such files or grants none: others wait for one."""
        if not hasattr(os, "memfd_create"):
            return cls()
        offer = cls()
        try:
            offer = cls(_machine(), os.getpid(), os.memfd_create("lookaround_ddp"), secrets.token_bytes(16))
            os.truncate(offer.file, size)
            os.pwrite(offer.file, offer.token, 0)
        except OSError:
            offer.close()
            return cls()
        return offer

    def map(self, size: int) -> mmap.mmap | None:
        """Its memory, or None where it cannot be reached; the token tells it from another file."""
        if self.machine is None or self.machine != _machine():
            return None
        try:
            file = os.open(f"/proc/{self.process}/fd/{self.file}", os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            memory = mmap.mmap(file, size)
        except (OSError, ValueError):
            return None
        finally:
            os.close(file)
        return memory if memory[: len(self.token)] == self.token else None

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)


def _machine() -> tuple[str, int] | None:
    """What two processes have in common exactly if they run on one machine and see each other's numbers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None


def _rows(memory: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """The first `size` elements of each row of bytes."""
    return memory[:, : size * dtype.itemsize].view(dtype)
