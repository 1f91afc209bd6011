"""`ReplicaGroup`: which rank hosts which replicas, and how the ranks reach each other."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Bytes of one replica in all buckets that are under way together. They are the extra memory of an average step between
# hosts; what is received comes on top.
BUCKET_BYTES = 34 * 2**20


class WeakGroup:
    """An attribute that is a process group or None, and does not keep the group alive.

    Where something does, `dist.destroy_process_group` leaves gloo's threads running.

    Raises:
        RuntimeError: where the attribute is read after the group was destroyed.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: object, owner: type) -> dist.ProcessGroup | None:
        # a dataclass reads the attribute on the class too, as the field's default
        reference = None if instance is None else vars(instance)[self._name]
        if reference is None:
            return None
        group: dist.ProcessGroup | None = reference()
        if group is None:
            raise RuntimeError("the process group of these replicas has been destroyed: they cannot meet any more")
        return group

    def __set__(self, instance: object, group: dist.ProcessGroup | None) -> None:
        vars(instance)[self._name] = None if group is None else weakref.ref(group)


@dataclass(frozen=True)
class ReplicaGroup:
    """The ranks that hold the replicas: rank r of `group` hosts the replicas r * hosted to (r + 1) * hosted - 1.

    Args:
        group: the ranks; None is this process alone.
        hosted: replicas on each rank.
        bucket_bytes: how much of one replica is exchanged at a time.
    """

    group: WeakGroup = WeakGroup()
    hosted: int = 1
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
        """Returns the device whose memory the backend can send: gloo's send and receive take CPU tensors only."""
        on_device = self.group is None or device.type == "cpu" or "nccl" in dist.get_backend(self.group)
        return device if on_device else torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        """Gathers values of shape (hosted, ...) from each rank into (replicas, ...) on all of them."""
        if self.group is None:
            return values
        values = values.to(self.wire(values.device)).contiguous()
        out = values.new_empty(self.replicas, *values.shape[1:])
        dist.all_gather(list(out.split(self.hosted)), values, group=self.group)
        return out

    def gather_objects(self, value: Any) -> list[Any]:
        """Gathers one picklable value from each rank, in rank order."""
        out = [value] * self.ranks
        if self.group is not None:
            dist.all_gather_object(out, value, group=self.group)
        return out

    def shards(self, elements: Tensor) -> list[Tensor]:
        """Cuts the last dimension into a share for each rank."""
        size = elements.shape[-1]
        bounds = [rank * size // self.ranks for rank in range(self.ranks + 1)]
        return [elements[..., low:high] for low, high in pairwise(bounds)]
