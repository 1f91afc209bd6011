"""Flat rows: the averaged tensors of a replica in one piece of memory for each dtype, of which they are views."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.shared_memory import shared_memory
from lookaround_ddp.averaging.tensors import SUM_DTYPES, Kind, Layout, as_real, flat_of, kinds_of, layout_of, write_back

ALIGNMENT = 64  # bytes: a cache line, and what vector units like
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
class _Place:
    """Where a tensor lies: in which matrix, and at which columns."""

    matrix: int
    start: int
    stop: int
    is_parameter: bool


@dataclass(frozen=True)
class _Size:
    """Of a matrix: see `Matrix`."""

    dtype: torch.dtype
    device: torch.device
    parameters: int
    buffers: int
    columns: int


class Rows:
    """The rows of the hosted replicas, and of all where ranks share memory.

    A tensor whose place is in a row becomes a view of it. It keeps its shape, strides and Python object, and has a
    storage of its own size, so saving or copying it drags nothing along. A tensor that shares its storage (a view, a
    kept `.data`) is not moved, since the alias would go stale; it is copied in and out on every average step.

    Args:
        members: the ranks.
        parts: into how many parts of one length a row is to fall, for ranks that share it; None: into theirs.
        moves: makes the tensors views of the rows, which lie in memory that all ranks share, if they can. Otherwise
            they are copied in and out.

    Attributes:
        matrices: one for each dtype and device.
    """

    def __init__(self, members: ReplicaGroup, parts: int | None = None, *, moves: bool = True) -> None:
        self.matrices: list[Matrix] = []
        self.members, self._parts, self._moves = members, parts or members.ranks, moves
        self._kinds: list[Kind] = []
        self._digest = 0
        self._layouts: list[Layout] = []
        self._where: list[_Place] = []
        self._places: list[list[Tensor]] = []  # of each hosted replica, its tensors' places
        self._tensors: Sequence[Sequence[Tensor]] = ()
        self._memory: mmap.mmap | None = None

    def fit(self, tensors: Sequence[Sequence[Tensor]]) -> bool:
        """Returns whether the hosted replicas' tensors are of the kinds that the rows were made for."""
        return all(kinds_of(row) == self._kinds for row in tensors)

    def digests(self, tensors: Sequence[Sequence[Tensor]]) -> list[int]:
        """Returns for each hosted replica a number that tells the kinds of its tensors."""
        fit = self.fit(tensors)
        return [self._digest if fit else _digest(kinds_of(row)) for row in tensors]

    def open(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Makes rows for replicas with such tensors; collective.

        Elements stand in the rows in the order in which the first rank has them in memory.
        """
        row = [*parameters, *buffers]
        self._kinds = kinds_of(row)
        self._digest = _digest(self._kinds)
        self._layouts = self.members.gather_objects([layout_of(tensor) for tensor in row])[0]
        self._where, sizes = _laid_out(row, len(parameters), self._parts * UNIT)
        self.matrices, self._memory = _allocated(sizes, self.members, shared=self._moves)
        self._places = [
            [
                _view(self.matrices[place.matrix].own[hosted, place.start : place.stop], tensor)
                for place, tensor in zip(self._where, row, strict=True)
            ]
            for hosted in range(self.members.hosted)
        ]

    def parameters_alike(self) -> list[Matrix]:
        """Allocates matrices like these, without running statistics; collective."""
        own = [matrix.own for matrix in self.matrices]
        ends = [(matrix.parameters, matrix.buffers) for matrix in self.matrices]
        sizes = [_Size(row.dtype, row.device, *end, end[1]) for row, end in zip(own, ends, strict=True)]
        return _allocated(sizes, self.members, shared=self._memory is not None)[0]

    def holds_parameters_as(self, others: Sequence[Matrix]) -> bool:
        """Returns whether `parameters_alike` would return matrices like these others."""
        wanted = [(matrix.own.dtype, matrix.buffers) for matrix in self.matrices]
        return bool(others) and wanted == [(other.own.dtype, other.columns) for other in others]

    def parameters_in(self, flat: Sequence[Tensor]) -> list[Tensor]:
        """Returns the parameters of a replica as views of rows for each matrix, of its dtype or a wider one."""
        views = []
        for (dtype, shape), layout, place in zip(self._kinds, self._layouts, self._where, strict=True):
            if place.is_parameter:
                values = flat[place.matrix][place.start : place.stop]
                values = torch.view_as_complex(values.view(-1, 2)) if dtype.is_complex else values
                ordered = values.view([shape[dimension] for dimension in layout])
                views.append(ordered.permute([layout.index(dimension) for dimension in range(len(shape))]))
        return views

    def take(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Moves or copies in the tensors that are not here yet."""
        self._tensors = tensors
        for row, places in zip(tensors, self._places, strict=True):
            for number, (tensor, place) in enumerate(zip(row, places, strict=True)):
                if tensor.data_ptr() != place.data_ptr() and tensor.numel():
                    self._take(tensor, place, self._layouts[number])

    def let_go(self) -> None:
        """Leaves the tensors alone, which have become others than the rows were made for."""
        self._tensors = ()

    def give(self) -> None:
        """Copies the new values to the tensors that lie elsewhere, and tells autograd that all have changed."""
        for row, places in zip(self._tensors, self._places, strict=False):
            for tensor, place, layout in zip(row, places, self._layouts, strict=True):
                if tensor.data_ptr() != place.data_ptr() and tensor.numel():
                    write_back(tensor, layout, as_real(place))
            increment_version(row)  # it does not see what other ranks write; a stale graph must fail

    def finite(self) -> Tensor:
        """Returns for each hosted replica 1 if every element is finite, else 0; on its device, for which nobody waits.

        A sum is not finite if a term is not. (It can also overflow on its own, at weights of 1e38 and more.)
        """
        if not self.matrices:
            return torch.ones(self.members.hosted, dtype=torch.int64)
        first, *others = (
            matrix.own.sum(1, dtype=SUM_DTYPES.get(matrix.own.dtype)).isfinite() for matrix in self.matrices
        )
        for flags in others:
            first &= flags.to(first.device)
        return first.to(torch.int64)

    def _take(self, tensor: Tensor, place: Tensor, layout: Layout) -> None:
        """Copies a tensor into its place, and moves it there if nothing else refers to its memory."""
        flat = flat_of(tensor, layout)
        as_real(place).copy_(flat)
        in_order = flat.data_ptr() == tensor.data_ptr()
        del flat  # which refers to the tensor's memory too
        if self._moves and in_order and _is_alone(tensor):
            tensor.data = place.as_strided(tensor.shape, tensor.stride())


def _allocated(sizes: Sequence[_Size], members: ReplicaGroup, shared: bool) -> tuple[list[Matrix], mmap.mmap | None]:
    """Allocates matrices, all zero, and returns the memory that ranks share, if they do; collective.

    Args:
        shared: put them into such memory, if all ranks can.
    """
    memory, matrices, offset = None, [], 0
    total = sum(size.columns * size.dtype.itemsize for size in sizes) * members.replicas
    if shared and members.ranks > 1 and total and all(size.device.type == "cpu" for size in sizes):
        memory = shared_memory(total, members)
    for size in sizes:
        if memory is None or not size.columns:
            rows = own = torch.zeros(members.hosted, size.columns, dtype=size.dtype, device=size.device)
        else:
            count = members.replicas * size.columns
            rows = torch.frombuffer(memory, dtype=size.dtype, count=count, offset=offset)
            rows = rows.view(members.replicas, size.columns)
            own = rows[members.first : members.first + members.hosted]
            own.zero_()
            offset += rows.nbytes
        matrices.append(Matrix(rows, own, size.parameters, size.buffers))
    return matrices, memory


def _laid_out(row: Sequence[Tensor], parameters: int, unit: int) -> tuple[list[_Place], list[_Size]]:
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
                places[number] = _Place(matrix, columns, columns + elements, number < parameters)
                columns = _rounded_up(columns + elements, ALIGNMENT // dtype.itemsize)
            ends.append(columns)
            columns = _rounded_up(columns, unit)
            ends.append(columns)
        end, buffers, _, columns = ends
        sizes.append(_Size(dtype, device, end, buffers, columns))
    return [places[number] for number in range(len(row))], sizes


def _digest(kinds: Sequence[Kind]) -> int:
    return crc32(repr(kinds).encode())


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _view(columns: Tensor, tensor: Tensor) -> Tensor:
    """Returns columns of a row as of the tensor's dtype, and in a storage of their own."""
    if not columns.numel():
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return torch.from_dlpack(columns).view(tensor.dtype)


def _is_alone(tensor: Tensor) -> bool:
    """Returns whether no other tensor shares this one's storage; False where PyTorch cannot tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or type(tensor) not in (Tensor, nn.Parameter):
        return False
    storage = tensor.untyped_storage()  # the second reference
    return storage.nbytes() == tensor.nbytes and count(storage._cdata) == 2
