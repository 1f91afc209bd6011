"""Flat storage: the tensors of all replicas of one machine in memory that its ranks share, so that none are copied."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from lookaround_ddp.layout import Kind, Layout, as_real, flat_of, kinds_of
from lookaround_ddp.members import Members
from lookaround_ddp.shared_memory import shared_memory

ALIGNMENT = 64  # bytes: a cache line, and what vector units like


class FlatStorage:
    """One row for each replica on all ranks, with a place for each of its tensors.

    A tensor whose place it is becomes a view of it. It keeps its shape, strides and Python object, and has a storage
    of its own size, so saving or copying it drags nothing along. One that others look into, by a view or `.data`
    that they keep, would leave them behind: it stays where it is, and is copied in here and out again each time.

    There is none on GPUs, whose copies cost next to nothing, nor where the ranks do not share memory.

    Attributes:
        rows: the elements of each tensor of each replica, hosted here or not: shape (elements,), complex ones as
            real; None where there is no storage.
    """

    def __init__(self, members: Members) -> None:
        self._members = members
        self._kinds: list[Kind] = []
        self._memory: mmap.mmap | None = None
        self.rows: list[list[Tensor]] | None = None

    def hold(self, rows: Sequence[Sequence[Tensor]], layouts: Sequence[Layout]) -> FlatStorage:
        """Moves or copies in what is not here; collective.

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
        """For replicas that are like this one."""
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
        """In a storage of its own."""
        dtype, elements = self._kinds[column]
        if not elements:
            return torch.empty(0, dtype=dtype)
        offset = replica * self._size + self._offsets[column]
        assert self._memory is not None
        return torch.frombuffer(self._memory, dtype=dtype, count=elements, offset=offset)


def _offsets(kinds: Sequence[Kind]) -> tuple[list[int], int]:
    """Bytes from the start of a row to each tensor's place, and of the whole row."""
    sizes = [-(-elements * dtype.itemsize // ALIGNMENT) * ALIGNMENT for dtype, elements in kinds]
    *offsets, size = accumulate(sizes, initial=0)
    return offsets, size


def _is_alone(tensor: Tensor) -> bool:
    """Whether nothing but this tensor refers to its memory. Only PyTorch can say; where it does not, no."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or type(tensor) not in (Tensor, nn.Parameter):
        return False
    storage = tensor.untyped_storage()  # the second reference
    return storage.nbytes() == tensor.nbytes and count(storage._cdata) == 2
