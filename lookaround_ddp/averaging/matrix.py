"""Matrices: a row of elements for each replica, of one dtype and device, and which tensor lies where in it."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lookaround_ddp.averaging.forks import keep_in_children
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.shared_memory import shared_memory

ROW_ALIGNMENT = 64  # bytes: a cache line, and what vector units like
UNIT = 16  # elements: a rank's share of a row is a multiple of it


@dataclass(frozen=True)
class Matrix:
    """A row of elements for each replica within reach, all of one real dtype; complex elements are two.

    Attributes:
        rows: of all replicas where they are within reach, shape (replicas, columns): one rank hosts them, or the ranks
            share memory. Elsewhere as `own`.
        own: those of the hosted replicas, shape (hosted, columns).
        parameters: the column before which the parameters end.
        buffers: the column at which the running statistics begin; between the two is nothing but zeros.
    """

    rows: Tensor
    own: Tensor
    parameters: int
    buffers: int

    @property
    def columns(self) -> int:
        return self.own.shape[1]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which matrix, and at which columns."""

    matrix: int
    start: int
    stop: int
    is_parameter: bool


@dataclass(frozen=True)
class Size:
    """Of a matrix: see `Matrix`."""

    dtype: torch.dtype
    device: torch.device
    parameters: int
    buffers: int
    columns: int


def allocated(
    sizes: Sequence[Size], replica_group: ReplicaGroup, shared: bool
) -> tuple[list[Matrix], mmap.mmap | None]:
    """Allocates matrices, all zero, and returns the memory that ranks share, if they do; collective.

    Args:
        shared: put them into such memory, if all ranks can.
    """
    memory, matrices, offset = None, [], 0
    total = sum(size.columns * size.dtype.itemsize for size in sizes) * replica_group.replicas
    if shared and replica_group.ranks > 1 and total and all(size.device.type == "cpu" for size in sizes):
        memory = shared_memory(total, replica_group)
    for size in sizes:
        if memory is None or not size.columns:
            rows = own = torch.zeros(replica_group.hosted, size.columns, dtype=size.dtype, device=size.device)
        else:
            count = replica_group.replicas * size.columns
            rows = torch.frombuffer(memory, dtype=size.dtype, count=count, offset=offset)
            rows = rows.view(replica_group.replicas, size.columns)
            own = rows[replica_group.first : replica_group.first + replica_group.hosted]
            own.zero_()
            offset += rows.nbytes
        matrices.append(Matrix(rows, own, size.parameters, size.buffers))
    if memory is not None:
        keep_in_children(memory, [matrix.own for matrix in matrices if matrix.columns])
    return matrices, memory


def laid_out(row: Sequence[Tensor], parameters: int, unit: int) -> tuple[list[Place], list[Size]]:
    """Returns a place for each tensor, and the size of the matrix of each dtype and device.

    Args:
        parameters: how many of the tensors, the first ones; the others are running statistics.
        unit: of columns: the statistics begin at a multiple of it, and so does what would come after them.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for number, tensor in enumerate(row):
        groups.setdefault((tensor.dtype.to_real(), tensor.device), []).append(number)
    places, sizes = {}, []
    for matrix, ((dtype, device), numbers) in enumerate(groups.items()):
        columns, ends = 0, []
        for part in ([n for n in numbers if n < parameters], [n for n in numbers if n >= parameters]):
            for number in part:
                elements = row[number].nbytes // dtype.itemsize
                places[number] = Place(matrix, columns, columns + elements, number < parameters)
                columns = _rounded_up(columns + elements, ROW_ALIGNMENT // dtype.itemsize)
            ends.append(columns)
            columns = _rounded_up(columns, unit)
            ends.append(columns)
        end, buffers, _, columns = ends
        sizes.append(Size(dtype, device, end, buffers, columns))
    return [places[number] for number in range(len(row))], sizes


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
