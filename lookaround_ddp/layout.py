"""How tensors lie in memory, and their elements in one dimension in that order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Layout = tuple[int, ...]  # a tensor's dimensions from the largest stride to the smallest
Kind = tuple[torch.dtype, int]  # of a tensor, and its number of elements


def layout_of(tensor: Tensor) -> Layout:
    """The order of dimensions in which the tensor's memory is one piece, if it has no gaps."""
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def flat_of(tensor: Tensor, layout: Layout) -> Tensor:
    """The elements in one dimension, in the layout's order: a view, or a copy where no view exists.

    Complex elements are two real ones each.
    """
    flat = tensor.detach()
    if flat.dim() != 1 or not flat.is_contiguous():
        flat = flat.permute(layout).reshape(-1).contiguous()
    return as_real(flat)


def as_real(flat: Tensor) -> Tensor:
    return flat.view(flat.dtype.to_real()) if flat.is_complex() else flat


def write_back(tensor: Tensor, layout: Layout, flat: Tensor) -> None:
    """Copies `flat` into the tensor that it has the elements of, if it is not a view of it."""
    if flat.data_ptr() != tensor.data_ptr():
        target = tensor.detach().permute(layout)
        target.copy_(flat.view(tensor.dtype).view(target.shape))


def by_dtype(row: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of the tensors of each dtype and device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for column, tensor in enumerate(row):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(column)
    return list(kinds.values())


def kinds_of(row: Sequence[Tensor]) -> list[Kind]:
    return [(tensor.dtype, tensor.numel()) for tensor in row]
