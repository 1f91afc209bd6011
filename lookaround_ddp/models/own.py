"""Networks of somebody's own, which a config names by a dotted path; activations that are not kept."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from lookaround_ddp.config import ModelConfig
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import called, find


def own_model(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Makes the network: calls the class or function with `num_classes`, `in_chans` and model.options.

    Raises:
        UserError: there is no such class or function, it fails, or it returns no network that can be trained.
    """
    name = config.name
    if config.dropout is not None:
        raise UserError(f"model.dropout is not for {name}: give it what it takes in model.options")
    if config.pretrained is True:
        raise UserError(f"there are no published weights for {name}: give model.pretrained a path")
    make = find(name, "model")
    with called(name, "model"):
        model = make(num_classes, in_chans, **config.options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name}: it returned {type(model).__name__}, no torch.nn.Module")
    if any(map(is_lazy, model.parameters())):
        raise UserError(f"model {name}: a lazy layer has no weights before it sees an image: give it its size")
    return model


def use_checkpointing(model: nn.Module, name: str) -> None:
    """Lets a network compute its activations anew in the backward pass.

    Raises:
        UserError: it cannot.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's, or an own network's
    except (AttributeError, AssertionError, NotImplementedError):  # no such method, or one that says no (timm asserts)
        raise UserError(f"model.checkpointing: {name} has no activation checkpointing: set it to false") from None
