"""Sharpness-aware minimization: the gradient where the loss nearby is highest (SAM, ASAM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lookaround_ddp.averaging import preserved

NORM_FLOOR = 1e-12  # a zero gradient gives a zero step, not 0 / 0


@contextmanager
def climbed(
    parameters: Iterable[tuple[str, Tensor]],
    rho: float = 0.05,
    *,
    adaptive: bool = False,
    eta: float = 0.01,
    loss_scale: Tensor | float = 1.0,
) -> Iterator[None]:
    """Moves the weights w to w + e inside the block, where the loss near w is highest to first order.

    After the block the weights are w again, bit for bit.

    SAM (Foret et al., arXiv 2010.01412, eq. 2): e = rho g / ||g||, over all parameters together.
    ASAM (Kwon et al., arXiv 2102.11600, eq. 10 and 11): e = rho T^2 g / ||T g||, where T is |w| + eta for
    parameters named `weight` and 1 for all others, as in its authors' code.

    Args:
        parameters: (name, parameter), with gradients g of the loss at w; one without a gradient is not moved.
        rho: the radius.
        adaptive: whether the step is ASAM's, not SAM's.
        eta: the number that is added to |w| in T.
        loss_scale: the factor by which the loss was multiplied (for fp16); g is the gradient divided by it.
    """
    named = [(name, parameter) for name, parameter in parameters if parameter.grad is not None]
    moved = [parameter for _, parameter in named]
    with preserved(moved):
        _climb(named, rho, adaptive, eta, loss_scale)
        yield


@torch.no_grad()
def _climb(
    named: Sequence[tuple[str, Tensor]], rho: float, adaptive: bool, eta: float, loss_scale: Tensor | float
) -> None:
    """Moves parameters with gradients up to the first-order maximum of the loss."""
    steps: list[tuple[Tensor | float, Tensor]] = []
    for name, parameter in named:
        assert parameter.grad is not None
        gradient = parameter.grad / loss_scale  # divided before the norm is taken: NORM_FLOOR is absolute
        scaled = adaptive and name.rpartition(".")[2] == "weight"
        steps.append((parameter.abs() + eta if scaled else 1.0, gradient))
    if steps:
        norm = torch.stack([torch.linalg.vector_norm(size * gradient) for size, gradient in steps]).norm()
        for (_, parameter), (size, gradient) in zip(named, steps, strict=True):
            parameter.add_(size * size * gradient * (rho / (norm + NORM_FLOOR)))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Puts the norm layers' running statistics and counts back, after the block, to what they were before it.

    A forward pass at w + e must not leave its statistics with the weights w.
    """
    norms = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    with preserved(buffers):
        yield
