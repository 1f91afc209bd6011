"""Memory that processes of one machine share, so that each can sum and write the replicas of all."""

from __future__ import annotations

import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookaround_ddp.averaging.replica_group import ReplicaGroup


def shared_memory(size: int, replica_group: ReplicaGroup) -> mmap.mmap | None:
    """Returns so many bytes that all ranks share; None, on all, where they do not run on one machine. Collective.

    None also where the system grants no such memory. Its first bytes are not zero.
    """
    size = max(size, mmap.PAGESIZE)
    offer = _Offer.make(size) if replica_group.rank == 0 else _Offer()
    try:
        offers: list[Any] = replica_group.gather_objects(offer)
        memory = offers[0].map(size)
        everywhere = all(replica_group.gather_objects(memory is not None))
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
