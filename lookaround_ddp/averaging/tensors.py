"""Which tensors of a model are averaged, and digests that tell whether two models are alike."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

RUNNING_STATISTICS = ("running_mean", "running_var")  # of every norm layer that keeps them


# In which the check for inf and NaN sums half precision: in fp64 it takes 4 times as long
SUM_DTYPES = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def as_list(given: Any, kind: type) -> list[Any]:
    """Returns a list of what was given, which is one of a kind or several; not yet that it is of the kind."""
    return [given] if isinstance(given, kind) or not isinstance(given, Iterable) else list(given)


def as_models(models: Any) -> list[nn.Module]:
    """Returns a list of one model or of several; an nn.ModuleList holds several.

    What torch.compile made is there as the module that it compiles, which has the same tensors, by their own names.
    """
    listed: list[Any] = list(models) if isinstance(models, nn.ModuleList) else as_list(models, nn.Module)
    return [model._orig_mod if type(model).__name__ == "OptimizedModule" else model for model in listed]


def averaged_tensors(model: nn.Module, extra: Collection[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the (parameters, buffers) to average; `extra` names buffers in addition to the running statistics."""
    parameters: dict[Tensor, None] = {}  # in order, each once
    buffers: dict[Tensor, None] = {}
    for module in model.modules():  # one walk, which is half of a small network's average step
        parameters |= {tensor: None for tensor in module._parameters.values() if tensor is not None}
        own = module._buffers
        buffers |= {tensor: None for name in RUNNING_STATISTICS if (tensor := own.get(name)) is not None}
    if extra:
        buffers |= {tensor: None for name, tensor in model.named_buffers() if name in extra}
    return list(filter(is_number, parameters)), list(filter(is_number, buffers))


def local_tensors(model: nn.Module, extra: Collection[str]) -> list[Tensor]:
    """Returns the parameters and buffers that stay with their replica."""
    integers = [p for p in model.parameters() if not is_number(p)]
    return integers + [b for name, b in model.named_buffers() if not _is_averaged(name, b, extra)]


def _is_averaged(name: str, buffer: Tensor, extra: Collection[str]) -> bool:
    """Returns whether the average step averages a buffer of this name."""
    return is_number(buffer) and (name.rpartition(".")[2] in RUNNING_STATISTICS or name in extra)


def is_number(tensor: Tensor) -> bool:
    """Returns whether a tensor can be averaged: floating-point or complex."""
    return tensor.is_floating_point() or tensor.is_complex()


def trouble_with(tensor: Tensor) -> str | None:
    """Returns why the values of a tensor cannot be averaged or given to all replicas, and the mend; None: they can."""
    if is_traceable_wrapper_subclass(tensor):
        return f"is a {type(tensor).__name__}: the weights must be plain tensors, whole on each rank"
    if tensor.is_meta:
        return "is on the device meta, without values: call model.to_empty(device=...) and initialize it first"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        layout = "quantized" if tensor.is_quantized else tensor.layout
        return f"is {layout}: convert it to a dense one first, as to_dense or dequantize does"
    if is_number(tensor) and tensor.dtype.itemsize == 1:
        return f"is of {tensor.dtype}, too coarse for a mean: train in bfloat16 or a wider dtype"
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if reach + 1 < tensor.numel():
        return "has several elements in one place, as expand makes them: give it memory of its own by contiguous()"
    return None


def digest(model: nn.Module) -> str:
    """Returns a digest of the names, shapes and dtypes of parameters and buffers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    text = repr([(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def content_digest(model: nn.Module) -> str:
    """Returns the SHA-256 of the names and the bits of parameters and buffers."""
    content = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        content.update(name.encode())
        content.update(_bytes(tensor))
    return content.hexdigest()


def mean_digest(model: nn.Module, extra: Collection[str]) -> str:
    """Returns the SHA-256 of the bits that an average step has given to all replicas."""
    content = hashlib.sha256()
    for tensors in averaged_tensors(model, extra):
        for tensor in tensors:
            content.update(_bytes(tensor))
    return content.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    """Returns the bits of a tensor's elements, in order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


Layout = tuple[int, ...]  # a tensor's dimensions from the largest stride to the smallest


Kind = tuple[torch.dtype, torch.Size]  # of a tensor


def layout_of(tensor: Tensor) -> Layout:
    """Returns the order of dimensions in which the tensor's memory is one piece, if it has no gaps."""
    return tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


def flat_of(tensor: Tensor, layout: Layout) -> Tensor:
    """Returns the elements in one dimension, in the layout's order: a view, or a copy where no view exists.

    Complex elements are two real ones each.
    """
    flat = tensor.detach()
    if flat.dim() != 1 or not flat.is_contiguous():
        flat = flat.permute(layout).reshape(-1).contiguous()
    return as_real(flat)


def as_real(flat: Tensor) -> Tensor:
    """Returns a view of complex elements as two real ones each; real ones as they are."""
    return flat.view(flat.dtype.to_real()) if flat.is_complex() else flat


def write_back(tensor: Tensor, layout: Layout, flat: Tensor) -> None:
    """Copies the elements that `flat_of` returned back into their tensor, unless they are a view of it."""
    if flat.data_ptr() != tensor.data_ptr():
        target = tensor.detach().permute(layout)
        target.copy_(flat.view(tensor.dtype).view(target.shape))


def kinds_of(row: Sequence[Tensor]) -> list[Kind]:
    """Returns dtype and shape of each tensor."""
    return [(tensor.dtype, tensor.shape) for tensor in row]


Shapes = dict[str, torch.Size]  # by name


def shapes_of(model: nn.Module) -> Shapes:
    """Returns the shapes of the model's parameters and buffers."""
    return {name: tensor.shape for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def change_of(before: Shapes, now: Shapes) -> str | None:
    """Returns what has changed first; None: nothing."""
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            was, is_now = (f"shape {tuple(shapes[name])}" if name in shapes else "none" for shapes in (before, now))
            return f"{name!r} of the model has become another ({is_now}; it was {was})"
    return None


@contextmanager
def preserved(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Gives tensors their values back after the block, bit for bit, whatever was written into them."""
    kept = [(tensor.detach(), tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in kept:
            tensor.copy_(value)
