"""`ReplicaGroup`: which rank hosts which replicas, and how the ranks reach each other."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DTYPE_ALIGNMENT = 16  # bytes, of the widest dtype
PACKET_BYTES = 64 * 2**20  # of a broadcast


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
    """The ranks that hold the replicas, whose numbers run through the ranks: those of rank 0 come first.

    Args:
        group: the ranks; None is this process alone.
        counts: of each rank, how many replicas it hosts.
        size: so many in a row have a mean of their own; None: all have one.
    """

    group: WeakGroup = WeakGroup()
    counts: Sequence[int] = (1,)
    size: int | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None, hosted: int) -> ReplicaGroup:
        """Makes it from what each rank says of itself; collective.

        Raises:
            ValueError: see `require_member`.
        """
        require_member("group", group)
        counts = [hosted] * size_of(group)
        if group is not None:
            dist.all_gather_object(counts, hosted, group=group)
        return cls(group, tuple(counts))

    @property
    def ranks(self) -> int:
        return len(self.counts)

    @property
    def rank(self) -> int:
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def replicas(self) -> int:
        return sum(self.counts)

    @property
    def teams(self) -> list[range]:
        """The numbers of the replicas that have a mean together."""
        size = self.size or self.replicas
        return [range(first, first + size) for first in range(0, self.replicas, size)]

    @property
    def hosted(self) -> int:
        """How many replicas this rank hosts."""
        return self.counts[self.rank]

    @property
    def first(self) -> int:
        """The number of the first replica of this rank."""
        return self.first_of(self.rank)

    def first_of(self, rank: int) -> int:
        """Returns the number of the first replica of a rank."""
        return sum(self.counts[:rank])

    def wire(self, device: torch.device) -> torch.device:
        """Returns the device whose memory the backend can send; see `wire`."""
        return wire(self.group, device)

    def gather(self, values: Tensor) -> Tensor:
        """Gathers values of shape (hosted, ...) from each rank into (replicas, ...) on all of them.

        They come back on the device that the backend can send from; the host does not wait for it.
        """
        if self.group is None:
            return values
        most = max(self.counts)
        padded = values.to(self.wire(values.device)).contiguous()
        if len(values) < most:
            padded = torch.cat([padded, padded.new_zeros(most - len(values), *values.shape[1:])])
        out = padded.new_empty(self.ranks * most, *values.shape[1:])
        all_gather_(out, padded, self.group)
        if most * self.ranks == self.replicas:
            return out
        return torch.cat([rows[:count] for rows, count in zip(out.split(most), self.counts, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """Gathers one picklable value from each rank, in rank order."""
        out = [value] * self.ranks
        if self.group is not None:
            dist.all_gather_object(out, value, group=self.group)
        return out

    def meet(self) -> None:
        """Waits until all ranks are here."""
        if self.ranks > 1:
            dist.all_reduce(torch.zeros(1), group=self.group)  # takes gloo two thirds of a barrier's time


def require_member(name: str, group: object) -> None:
    """Raises ValueError unless this rank is in a group, or the group is None."""
    if group is None:
        return
    if not isinstance(group, dist.ProcessGroup | int):  # dist.new_group gives an int to the ranks that it leaves out
        raise ValueError(f"{name} is {group!r}: give a process group, as dist.new_group makes it")
    if isinstance(group, int) or dist.get_rank(group) < 0:
        raise ValueError(f"this rank is not in `{name}`: only the ranks of a group create a Lookaround with it")


def size_of(group: dist.ProcessGroup | None) -> int:
    """Returns the number of its ranks; None is this process alone."""
    return 1 if group is None else dist.get_world_size(group)


def wire(group: dist.ProcessGroup | None, device: torch.device) -> torch.device:
    """Returns the device whose memory the group's backend can send: gloo's exchanges take CPU tensors only."""
    on_device = group is None or device.type == "cpu" or "nccl" in dist.get_backend(group)
    return device if on_device else torch.device("cpu")


def all_gather_(
    whole: Tensor, part: Tensor, group: dist.ProcessGroup | None, *, async_op: bool = False
) -> dist.Work | None:
    """Fills `whole` with the parts of all ranks, one after the other; its size is theirs together."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its older name
    work: dist.Work | None = gather(whole, part, group=group, async_op=async_op)
    return work


def broadcast_(tensors: Iterable[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites tensors, of any dtype and memory layout, with those of the group's first rank.

    They travel packed: in one message where they are few.
    """
    if size_of(group) == 1:
        return
    packet: list[Tensor] = []
    for tensor in tensors:
        if packet and sum(each.nbytes for each in packet) + tensor.nbytes > PACKET_BYTES:
            _broadcast_packed_(packet, group)
            packet = []
        if tensor.numel():
            packet.append(tensor.detach())
    if packet:
        _broadcast_packed_(packet, group)


def broadcast_to_all_(rows: Sequence[Sequence[Tensor]], group: dist.ProcessGroup | None) -> None:
    """Overwrites the tensors of all hosted replicas with those of the first one of the group's first rank."""
    broadcast_(rows[0], group)
    for row in rows[1:]:
        for tensor, value in zip(row, rows[0], strict=True):
            tensor.detach().copy_(value)


def _broadcast_packed_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites tensors by one message."""
    sizes = [-(-tensor.nbytes // DTYPE_ALIGNMENT) * DTYPE_ALIGNMENT for tensor in tensors]
    packed = torch.empty(sum(sizes), dtype=torch.uint8, device=wire(group, tensors[0].device))
    places = [
        place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(packed.split(sizes), tensors, strict=True)
    ]
    if dist.get_rank(group) == 0:
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
    dist.broadcast(packed, group=group, group_src=0)
    for place, tensor in zip(places, tensors, strict=True):
        tensor.copy_(place)
