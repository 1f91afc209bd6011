"""Floating-point operations of training, and the share that it reaches of a matrix product's: MFU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lookaround_ddp.bench.figures import now
from lookaround_ddp.data.device import one_thread

PRODUCT_SECONDS = 0.2  # the least time for which a product's speed is measured


SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices; larger ones are no faster


def per_image(model: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Counts the operations of one image's forward and backward pass; None if they cannot be counted.

    A multiplication and an addition count as two. Matrix products and convolutions are counted; norms, activations and
    the optimizer's update are not. It takes two images, since batch-norm cannot train on one, and changes the model.
    """
    images = torch.zeros(2, *shape)
    try:
        with FlopCounterMode(display=False) as counter:
            model(images).sum().backward()
    except RuntimeError:  # an operation that the counter cannot follow
        return None
    return counter.get_total_flops() // len(images) or None


def product_speed(device: torch.device, precision: str = "fp32") -> float | None:
    """Measures matrix products on a GPU or one CPU thread, in operations a second; None if it cannot.

    Args:
        precision: of the factors: fp32, bf16 or fp16.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    side = SIDES[device.type]
    try:
        with _like_convolutions() if device.type == "cuda" else one_thread():
            left, right = torch.randn(2, side, side, device=device, dtype=dtype)
            return 2 * side**3 / _product_seconds(left, right)
    except RuntimeError:  # out of memory
        return None


def utilization(operations: int | None, images_per_second: float, peak: float | None, units: int) -> float | None:
    """Returns the MFU: training's operations a second over the peak of `units` devices or cores; None if unknown."""
    if operations is None or peak is None:
        return None
    return operations * images_per_second / (units * peak)


@contextmanager
def _like_convolutions() -> Iterator[None]:
    """Gives a GPU's fp32 products the precision of its convolutions: TF32, unless PyTorch is told otherwise."""
    products = torch.backends.cuda.matmul
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # is made when torch is imported
    before, products.fp32_precision = products.fp32_precision, convolutions.fp32_precision
    try:
        yield
    finally:
        products.fp32_precision = before


def _product_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    """Measures the seconds of one product."""
    result = left @ right  # the first one allocates and plans
    start, count, passed = now(left.device), 0, 0.0
    while passed < PRODUCT_SECONDS:
        torch.mm(left, right, out=result)
        passed, count = now(left.device) - start, count + 1
    return passed / count
