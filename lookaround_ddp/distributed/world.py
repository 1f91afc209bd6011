"""`World`: the processes of a run, their devices, and which replica each of them trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from lookaround_ddp.averaging import WeakGroup
from lookaround_ddp.distributed.heartbeat import Heartbeat
from lookaround_ddp.errors import UserError, explained

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """W processes that train d replicas; W is at most d, or a multiple of it.

    W <= d: the replicas are dealt out in order, as evenly as W and d allow; the first d mod W ranks host one
    more. W > d: the D = W / d ranks from j * D on are the shards of replica j, and share its batches.
    """

    rank: int
    size: int
    replicas: int
    device: torch.device
    backend: str
    replica_group: WeakGroup = WeakGroup()  # the ranks that an average runs over; None: one process
    background_group: WeakGroup = WeakGroup()  # the same ranks, for averages that go on while they train
    node_group: WeakGroup = WeakGroup()  # those that average inside nodes together; None: there are no nodes
    shard_group: WeakGroup = WeakGroup()  # the ranks of this rank's replica; None: it has one
    heartbeat: Heartbeat | None = None  # None: one process

    @property
    def hosted(self) -> range:
        """The numbers of the replicas that this rank trains."""
        if self.size > self.replicas:
            replica = self.rank // self.shards
            return range(replica, replica + 1)
        count, more = divmod(self.replicas, self.size)
        first = self.rank * count + min(self.rank, more)
        return range(first, first + count + (self.rank < more))

    @property
    def shards(self) -> int:
        """D, the number of ranks of one replica."""
        return max(1, self.size // self.replicas)

    @property
    def shard(self) -> int:
        """This rank's place among the ranks of its replica."""
        return self.rank % self.shards

    @property
    def main(self) -> bool:
        return self.rank == 0

    def does(self, what: str) -> None:
        """Tells the others what this rank begins to do, such as "evaluating after iteration 15"."""
        if self.heartbeat is not None:
            self.heartbeat.does(what)

    def gather(self, value: T) -> list[T]:
        """Gathers one picklable value from each rank, in rank order."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """Returns rank 0's value on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def barrier(self) -> None:
        """Waits until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a CPU tensor over all ranks, in place, and returns it."""
        if self.size > 1:
            on_wire = values.to(self.device if self.backend == "nccl" else "cpu")
            dist.all_reduce(on_wire)
            values.copy_(on_wire)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs a step that may fail on any rank; then fails on all, with the first message.

        Without it, the ranks that succeeded would wait in the next collective for one that has left.
        """
        error: Exception | None = None
        message: str | None = None
        try:
            yield
        except UserError as caught:
            error, message = caught, str(caught)
        except OSError as caught:
            error, message = caught, explained(caught)
        messages = self.gather(message)
        for rank, each in enumerate(messages):
            if each is not None:
                where = f" (rank {rank})" if None in messages else ""
                mistake = UserError(each + where)
                mistake.everywhere = True
                raise mistake from error
