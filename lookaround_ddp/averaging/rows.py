"""Flat rows: the averaged tensors of a replica in one piece of memory for each dtype, of which they are views."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from lookaround_ddp.averaging.matrix import UNIT, Matrix, Place, Size, allocated, laid_out
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.tensors import SUM_DTYPES, Kind, Layout, as_real, flat_of, kinds_of, layout_of, write_back

FP64_ELEMENTS = 2**22  # summed at a time in fp64


class Rows:
    """The rows of the hosted replicas, and of all where ranks share memory.

    A tensor whose place is in a row becomes a view of it. It keeps its shape, strides and Python object, and has a
    storage of its own size, so saving or copying it drags nothing along. A tensor that shares its storage (a view, a
    kept `.data`) is not moved, since the alias would go stale; it is copied in and out on every average step.

    Args:
        replica_group: the ranks.
        parts: into how many parts of one length a row is to fall, for ranks that share it; None: into theirs.
        moves: makes the tensors views of the rows, which lie in memory that all ranks share, if they can. Otherwise
            they are copied in and out.

    Attributes:
        matrices: one for each dtype and device.
    """

    def __init__(self, replica_group: ReplicaGroup, parts: int | None = None, *, moves: bool = True) -> None:
        self.matrices: list[Matrix] = []
        self.replica_group, self._parts, self._moves = replica_group, parts or replica_group.ranks, moves
        self._kinds: list[Kind] = []
        self._digest = 0
        self._layouts: list[Layout] = []
        self._where: list[Place] = []
        self._places: list[list[Tensor]] = []  # of each hosted replica, its tensors' places
        self._tensors: Sequence[Sequence[Tensor]] = ()
        self._memory: mmap.mmap | None = None

    def fit(self, tensors: Sequence[Sequence[Tensor]]) -> bool:
        """Returns whether the hosted replicas' tensors are of the kinds that the rows were made for."""
        return all(kinds_of(row) == self._kinds for row in tensors)

    def digests(self, tensors: Sequence[Sequence[Tensor]], others: Sequence[Tensor] = ()) -> list[int]:
        """Returns for each hosted replica 32 bits that tell the kinds of its tensors, and of others of this rank."""
        fit = self.fit(tensors)
        further = _digest_of_kinds(kinds_of(others)) if others else 0
        return [(self._digest if fit else _digest_of_kinds(kinds_of(row))) ^ further for row in tensors]

    def open(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Makes rows for replicas with such tensors; collective.

        Elements stand in the rows in the order in which the first rank has them in memory.
        """
        row = [*parameters, *buffers]
        self._kinds = kinds_of(row)
        self._digest = _digest_of_kinds(self._kinds)
        self._layouts = self.replica_group.gather_objects([layout_of(tensor) for tensor in row])[0]
        self._where, sizes = laid_out(row, len(parameters), self._parts * UNIT)
        self.matrices, self._memory = allocated(sizes, self.replica_group, shared=self._moves)
        self._places = [
            [
                _view(self.matrices[place.matrix].own[hosted, place.start : place.stop], tensor)
                for place, tensor in zip(self._where, row, strict=True)
            ]
            for hosted in range(self.replica_group.hosted)
        ]

    def parameters_alike(self) -> list[Matrix]:
        """Allocates matrices like these, without running statistics; collective."""
        own = [matrix.own for matrix in self.matrices]
        ends = [(matrix.parameters, matrix.buffers) for matrix in self.matrices]
        sizes = [Size(row.dtype, row.device, *end, end[1]) for row, end in zip(own, ends, strict=True)]
        return allocated(sizes, self.replica_group, shared=self._memory is not None)[0]

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

    def sums(self, *, of_parameters: bool = False) -> Tensor:
        """Returns for each hosted replica a sum, fp64, that is finite if every element is; nobody waits for it.

        A sum is not finite if a term is not. (It can also overflow on its own, at weights of 1e38 and more.)

        Args:
            of_parameters: it is that of the parameters alone, summed in fp64 so that hardly any others have the same.
        """
        if not self.matrices:
            return torch.zeros(self.replica_group.hosted, dtype=torch.float64)
        first, *others = (_sums(matrix, of_parameters) for matrix in self.matrices)
        for sums in others:
            first = first + sums.to(first.device)
        return first

    def _take(self, tensor: Tensor, place: Tensor, layout: Layout) -> None:
        """Copies a tensor into its place, and moves it there if nothing else refers to its memory."""
        flat = flat_of(tensor, layout)
        as_real(place).copy_(flat)
        in_order = flat.data_ptr() == tensor.data_ptr()
        del flat  # which refers to the tensor's memory too
        if self._moves and in_order and _is_alone(tensor):
            tensor.data = place.as_strided(tensor.shape, tensor.stride())


def _sums(matrix: Matrix, of_parameters: bool) -> Tensor:
    """Returns a matrix's part of `Rows.sums`."""
    own, dtype = matrix.own, SUM_DTYPES.get(matrix.own.dtype)
    if not of_parameters:
        return own.sum(1, dtype=dtype).double()
    # One by one: the same on any rank. In parts, since a CPU copies to fp64 what it is to sum in it
    rows = [row[: matrix.parameters].split(FP64_ELEMENTS) for row in own]
    sums = [torch.stack([part.sum(dtype=torch.float64) for part in row]).sum() for row in rows]
    return torch.stack(sums) + 0 * own[:, matrix.buffers :].sum(1, dtype=dtype)


def _digest_of_kinds(kinds: Sequence[Kind]) -> int:
    return crc32(repr(kinds).encode())


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
