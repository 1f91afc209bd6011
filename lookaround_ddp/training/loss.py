"""The loss of an update: cross-entropy, or what the config names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lookaround_ddp.config import Config
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import called, imported

Loss = Callable[[Tensor, Tensor], Tensor]  # of fp32 logits (n, classes) and labels (n,) or targets (n, classes): a mean


def make_loss(config: Config, device: torch.device) -> Loss:
    """Returns the config's loss.

    Raises:
        UserError: there is no such function or class, or it cannot be made.
    """
    if config.loss == "cross_entropy":
        return partial(_cross_entropy, smoothing=config.label_smoothing)
    ((path, arguments),) = ({config.loss: {}} if isinstance(config.loss, str) else config.loss).items()
    with called(path, "loss"):
        loss = imported(path, arguments, "loss")
    if isinstance(loss, nn.Module):
        loss.to(device)
        if any(parameter.requires_grad for parameter in loss.parameters()):
            raise UserError(f"loss {path}: it has parameters, which no optimizer would train: make them buffers")
    return partial(_own_loss, path=path, loss=loss)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    smoothing = smoothing if targets.dim() == 1 else 0.0  # mixed targets are smooth already
    return cross_entropy(logits, targets, label_smoothing=smoothing)


def _own_loss(logits: Tensor, targets: Tensor, path: str, loss: Loss) -> Tensor:
    """Returns the own loss; raises UserError if it is no mean that a gradient can be taken of."""
    value = loss(logits, targets)
    if not isinstance(value, Tensor):
        raise UserError(f"loss {path}: it returned {type(value).__name__}, no tensor")
    if value.dim() != 0:
        raise UserError(f"loss {path}: it returned {'x'.join(map(str, value.shape))} values: return their mean")
    if not value.requires_grad:
        raise UserError(f"loss {path}: what it returned does not depend on the logits, so that it has no gradient")
    return value
