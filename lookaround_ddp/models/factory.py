"""Networks by name: CIFAR-size ones of our own, any timm model, and their starting weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lookaround_ddp.config import ModelConfig
from lookaround_ddp.errors import UserError, nearest
from lookaround_ddp.models.own import own_model, use_checkpointing
from lookaround_ddp.models.resnet import BasicBlock, Bottleneck, GroupedBottleneck, ResNet
from lookaround_ddp.models.vgg import VGG
from lookaround_ddp.own_code import is_path

OWN_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": partial(ResNet, BasicBlock, (1, 1, 1)),
    "resnet14": partial(ResNet, BasicBlock, (2, 2, 2)),
    "resnet20": partial(ResNet, BasicBlock, (3, 3, 3)),
}


CIFAR: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2), 64),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3), 64),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3), 64),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3), 64),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3), 64),
    "resnext50": partial(ResNet, GroupedBottleneck, (3, 4, 6, 3), 64),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}


MODEL_RESERVED = {  # arguments of timm.create_model -> what to set instead of them in model.options
    "num_classes": "the data says how many classes there are",
    "in_chans": "the data says how many channels there are",
    "model_name": "set model.name",
    "pretrained": "set model.pretrained",
    "checkpoint_path": "set model.pretrained to the file",
    "drop_rate": "set model.dropout",
    "features_only": "a network that is trained has a head",
}


def create_model(config: ModelConfig, num_classes: int, in_chans: int = 3) -> nn.Module:
    """Makes the network, with a head for `num_classes`, on the CPU, initialized from torch's global generator.

    Raises:
        UserError: an unknown name (with the nearest known one), weights that cannot be read or do not fit, or a
            network that cannot do what the config asks for.
    """
    if config.name.startswith("timm:"):
        model = _timm_model(config, num_classes, in_chans)
    elif is_path(config.name):
        _refuse_width(config)
        model = own_model(config, num_classes, in_chans)
        if config.pretrained:
            load_weights(model, weights_file(str(config.pretrained)), head="")
    else:
        model = _small_model(config, num_classes, in_chans)
    if config.checkpointing:
        use_checkpointing(model, config.name)
    return model


def _small_model(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    if config.options:
        raise UserError(f"model.options are for timm's models and your own, not for {config.name}")
    options = {} if config.dropout is None else {"dropout": config.dropout}
    if config.name in OWN_NETWORKS:
        model = OWN_NETWORKS[config.name](config.width, num_classes, in_chans, **options)
    elif config.name in CIFAR:
        _refuse_width(config)
        model = CIFAR[config.name](num_classes, in_chans, **options)
    else:
        raise UserError(
            f"unknown model {config.name!r}: {nearest(config.name, [*OWN_NETWORKS, *CIFAR])} "
            "(any timm model is timm:NAME, your own my.module.Net)"
        )
    if config.pretrained is True:
        raise UserError(
            f"there are no published weights for {config.name}: give model.pretrained a path, or use timm:NAME"
        )
    if config.pretrained:
        load_weights(model, weights_file(config.pretrained), head="fc")
    return model


def load_weights(model: nn.Module, path: Path, head: str) -> None:
    """Loads a state dict from a file into the network, without the head's tensors whose shapes differ.

    Args:
        head: its name in the network; "": every tensor must fit.

    Raises:
        UserError: the file cannot be read, or anything but the head does not fit.
    """
    state, own = read_state(path), model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if not (name.startswith(head + ".") and name in own and own[name].shape != value.shape)
    }
    misfits = [name for name, value in fitting.items() if name not in own or own[name].shape != value.shape]
    missing = [name for name in own if name not in fitting and not name.startswith(head + ".")]
    if misfits or missing:
        name = (misfits or missing)[0]
        raise UserError(
            f"{path} does not fit the model: {len(misfits)} tensors too many, {len(missing)} missing, such as {name}"
        )
    model.load_state_dict(fitting, strict=False)


def weights_file(name: str) -> Path:
    """Returns the file that `model.pretrained` names: itself, the replica's in the folder of a checkpoint, or a run's.

    A finished run stands for its average along time where it made one, else for its mean model.

    Raises:
        UserError: there is no such file, or a checkpoint has several replicas.
    """
    path = Path(name)
    for shipped in ("trajectory.safetensors", "model.safetensors"):
        if (path / shipped).is_file():
            return path / shipped
    replicas = sorted(path.glob("replica-*.pt"))
    if len(replicas) > 1:
        raise UserError(f"model.pretrained: {path} has {len(replicas)} replicas: name one of them, {replicas[0]}")
    path = replicas[0] if replicas else path
    if not path.is_file():
        raise UserError(f"model.pretrained: there is no file {path}")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file or a torch file (tensors only, never code).

    Raises:
        UserError: it does not hold a state dict of tensors.
    """
    try:
        state: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # each format has exceptions of its own; the user needs the file's name
        raise UserError(f"{path} is not a readable state dict: {' '.join(str(error).split())[:200]}") from None
    for key in ("shown", "state_dict", "model"):  # the first is that of a replica with Lookahead
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds something else than a state dict of tensors")
    return state


def compensate_norm_momentum(model: nn.Module, replicas: float) -> None:
    """Sets each batch-norm's momentum m to 1 - (1 - m)^d.

    The paper's code updates one shared set of running statistics d times in an iteration; a replica
    updates its own once. With this momentum the statistics follow the weights as quickly as there.
    """
    for module in model.modules():
        momentum = getattr(module, "momentum", None)
        if hasattr(module, "running_mean") and isinstance(momentum, float):
            module.momentum = 1 - (1 - momentum) ** replicas  # type: ignore[assignment]  # a norm layer's float


def refuse_unsafe_layout(model: nn.Module, setting: str) -> None:
    """Raises UserError for a network whose gradients a CPU computes wrongly in channels_last.

    The backward pass of a strided 1x1 convolution with fewer input channels than a vector register holds
    writes outside its buffer, silently or with a crash (oneDNN issue 6035, seen with torch 2.14.1).

    Args:
        setting: the key of the config that asks for this layout; a compiled network has it on a CPU, too.
    """
    for name, module in model.named_modules():
        strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        if strided and module.in_channels // module.groups < 16:
            raise UserError(
                f"{setting} on a CPU corrupts memory in {name} (a strided 1x1 convolution of "
                f"{module.in_channels} channels; oneDNN issue 6035): set {setting}=false or a width of 16"
            )


def empty_model(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    """Makes the network to load weights into: without those that were published for it, and not to be trained."""
    return create_model(config.model_copy(update={"pretrained": False, "checkpointing": False}), num_classes, in_chans)


def _timm_model(config: ModelConfig, num_classes: int, in_chans: int) -> nn.Module:
    import timm  # imported here: it takes seconds, and reading a run's figures needs no network

    name = config.name.removeprefix("timm:")
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
    _refuse_width(config)
    for key in sorted(config.options.keys() & MODEL_RESERVED.keys()):
        raise UserError(f"model.options.{key} would contradict what the trainer sets: {MODEL_RESERVED[key]}")
    overlay = [key for key in ("pretrained_cfg", "pretrained_cfg_overlay") if key in config.options]
    if overlay and isinstance(config.pretrained, str):
        raise UserError(f"model.options.{overlay[0]} and model.pretrained both say where weights are: keep one of them")
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **config.options}
    if config.dropout is not None:
        arguments["drop_rate"] = config.dropout
    if isinstance(config.pretrained, str):
        arguments["pretrained_cfg_overlay"] = {"file": str(weights_file(config.pretrained))}
    try:
        return timm.create_model(name, pretrained=bool(config.pretrained), **arguments)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"timm cannot make {name}: {' '.join(str(error).split())[:300]}") from None


def _refuse_width(config: ModelConfig) -> None:
    if config.width != ModelConfig().width:
        raise UserError(f"model.width is for {', '.join(OWN_NETWORKS)}, not for {config.name}")
