"""Base optimizers by name: timm's factory. SAM and Lookahead, which go around them, are in files of their own."""

from __future__ import annotations

import torch
from torch import nn

from lookaround_ddp.config import OptimizerConfig
from lookaround_ddp.errors import UserError, nearest

PLAIN_SGD = ("sgd", "momentum")


OPTIMIZER_RESERVED = {  # arguments of timm's create_optimizer_v2 -> what to set instead of them in optimizer.options
    "model_or_params": "the network's parameters are trained",
    "opt": "set optimizer.name",
    "lr": "set optimizer.lr",
    "weight_decay": "set optimizer.weight_decay",
    "momentum": "set optimizer.momentum",
    "nesterov": "set optimizer.nesterov",
    "filter_bias_and_bn": "set optimizer.no_decay",
}


FUSED = (*PLAIN_SGD, "adam", "adamw")  # for these PyTorch has a kernel that does all of a step


def create_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Makes the optimizer of one replica, over all of its parameters that require a gradient.

    Weight decay falls on everything unless `no_decay` says otherwise. timm's `sgd` has Nesterov's
    momentum; here it has only if `nesterov` is set, as in the paper.

    Raises:
        UserError: an unknown name, or options that the optimizer does not take.
    """
    from timm.optim import create_optimizer_v2, list_optimizers  # timm takes seconds to import

    for key in sorted(config.options.keys() & OPTIMIZER_RESERVED.keys()):
        raise UserError(f"optimizer.options.{key} would contradict what the trainer sets: {OPTIMIZER_RESERVED[key]}")
    options = dict(config.options)
    if config.layer_decay is not None:
        if "layer_decay" in options:
            raise UserError("optimizer.options.layer_decay would contradict optimizer.layer_decay: keep one of them")
        options["layer_decay"] = config.layer_decay
    if config.name in FUSED and not {"foreach", "fused", "capturable", "differentiable"} & options.keys():
        # The fused kernel is 4 times as fast on a CPU, too; it takes neither complex parameters nor mixed devices.
        options["fused"] = not any(parameter.is_complex() for parameter in model.parameters())
    if config.name in PLAIN_SGD:
        options["nesterov"] = config.nesterov
    elif config.nesterov:
        raise UserError(f"optimizer.nesterov is for sgd: timm has {config.name}'s variants as names of their own")
    known = [str(name) for name in list_optimizers()]
    if config.name not in known:
        raise UserError(f"unknown optimizer {config.name!r}: {nearest(config.name, known)}")
    try:
        made = create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            filter_bias_and_bn=config.no_decay == "norm_bias",
            **options,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"optimizer {config.name} with {options}: {error}") from None
    if (config.layer_decay or 1) < 1 and all(group.get("lr_scale", 1) == 1 for group in made.param_groups):
        raise UserError(
            "optimizer.layer_decay: nothing says which layer of the network comes after which: take one of timm's, or "
            "give your own timm's method group_matcher"
        )
    return made


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group of parameters; groups that timm scales (layer decay) keep their scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
