"""Flat storage: the tensors of all replicas of one machine in memory that its ranks share, so that none are copied."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.tensors import Kind, Layout, as_real, flat_of, kinds_of

ALIGNMENT = 64  # bytes: a cache line, and what vector units like


class FlatStorage:
    """One row for each replica on all ranks, with a place for each of its tensors.

    A tensor whose place it is becomes a view of it. It keeps its shape, strides and Python object, and has a storage
    of its own size, so saving or copying it drags nothing along. A tensor that shares its storage (a view, a kept
    `.data`) is not moved, since the alias would go stale; it is copied in and out on every average step.

    There is none on GPUs, whose copies cost next to nothing, nor where the ranks do not share memory.

    Attributes:
        rows: the elements of each tensor of each replica, hosted here or not: shape (elements,), complex ones as
            real; None where there is no storage.
    """

    def __init__(self, members: ReplicaGroup) -> None:
        self._members = members
        self._kinds: list[Kind] = []
        self._memory: mmap.mmap | None = None
        self.rows: list[list[Tensor]] | None = None

    def hold(self, rows: Sequence[Sequence[Tensor]], layouts: Sequence[Layout]) -> FlatStorage:
        """Moves or copies in the tensors that are not here yet; collective.

        Args:
            rows: the tensors of the hosted replicas; dtypes and sizes are the same in every row on every rank.
            layouts: the order of the elements of each.
        """
        if kinds_of(rows[0]) != self._kinds:
            self._open(rows[0])
        if self.rows is None:
            return self
        first = self._members.rank * self._members.hosted
        for replica, row in enumerate(rows, first):
            for column, (tensor, layout) in enumerate(zip(row, layouts, strict=True)):
                flat, place = flat_of(tensor, layout), self.rows[replica][column]
                if flat.data_ptr() == place.data_ptr() or not tensor.numel():
                    continue
                place.copy_(flat)
                in_order = flat.data_ptr() == tensor.data_ptr()
                del flat  # which refers to the tensor's memory too
                if in_order and _is_alone(tensor):
                    tensor.data = self._place(replica, column).as_strided(tensor.shape, tensor.stride())
        return self

    def _open(self, row: Sequence[Tensor]) -> None:
        """Allocates rows for replicas with tensors of these dtypes and sizes; collective."""
        self._kinds, self.rows = kinds_of(row), None
        self._offsets, self._size = _offsets(self._kinds)
        if self._members.ranks == 1 or any(tensor.device.type != "cpu" for tensor in row):
            return
        self._memory = shared_memory(self._size * self._members.replicas, self._members)
        if self._memory is not None:
            self.rows = [
                [as_real(self._place(replica, column)) for column in range(len(row))]
                for replica in range(self._members.replicas)
            ]

    def _place(self, replica: int, column: int) -> Tensor:
        """Returns a tensor's place in a replica's row, in a storage of its own."""
        dtype, elements = self._kinds[column]
        if not elements:
            return torch.empty(0, dtype=dtype)
        offset = replica * self._size + self._offsets[column]
        assert self._memory is not None
        return torch.frombuffer(self._memory, dtype=dtype, count=elements, offset=offset)


def _offsets(kinds: Sequence[Kind]) -> tuple[list[int], int]:
    """Returns the bytes from the start of a row to each tensor's place, and those of the whole row."""
    sizes = [-(-elements * dtype.itemsize // ALIGNMENT) * ALIGNMENT for dtype, elements in kinds]
    *offsets, size = accumulate(sizes, initial=0)
    return offsets, size


def _is_alone(tensor: Tensor) -> bool:
    """Returns whether no other tensor shares this one's storage; False where PyTorch cannot tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or type(tensor) not in (Tensor, nn.Parameter):
        return False
    storage = tensor.untyped_storage()  # the second reference
    return storage.nbytes() == tensor.nbytes and count(storage._cdata) == 2


def shared_memory(size: int, members: ReplicaGroup) -> mmap.mmap | None:
    """Returns so many bytes that all ranks share; None, on all, where they do not run on one machine. Collective.

    None also where the system grants no such memory. Its first bytes are not zero.
    """
    size = max(size, mmap.PAGESIZE)
    offer = _Offer.make(size) if members.rank == 0 else _Offer()
    try:
        offers: list[Any] = members.gather_objects(offer)
        memory = offers[0].map(size)
        everywhere = all(members.gather_objects(memory is not None))
    finally:
        offer.close()
    return memory if everywhere else None


@dataclass(frozen=True)
class _Offer:
    """An anonymous file of a process, which others on its machine can open while it has it open."""

    machine: tuple[str, int] | None = None
    process: int = 0
    file: int = -1
    token: bytes = b""

    @classmethod
    def make(cls, size: int) -> _Offer:
        """Makes an offer; one that nobody can map where the system grants no file, since others wait for an offer."""
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
        """Returns its memory, or None where it cannot be reached; the token tells it from another file."""
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
        """Closes the file; memory that was mapped stays."""
        if self.file >= 0:
            os.close(self.file)


def _machine() -> tuple[str, int] | None:
    """Returns what two processes have in common exactly if they run on one machine and see each other's numbers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
