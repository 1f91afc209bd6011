"""Lookaround for loops that are written with accelerate: each process trains a replica of the model.

    around, model, optimizer, loader = prepare(accelerator, model, optimizer, loader, k=5)
    for images, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            around.step()

It stands in the place of `accelerator.prepare`, which would wrap the model in DDP and give each process a share of the
data. A learning-rate schedule stays bare too: a prepared one takes a step for every process at once.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard, prepare_data_loader
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lookaround_ddp.averaging import Lookaround

SHARDED_TYPES = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    k: Any = 5,
    **options: Any,
) -> tuple[Lookaround, nn.Module, Optimizer, DataLoader[Any]]:
    """Returns a `Lookaround` with these options, and model, optimizer and loader as accelerate needs them. Collective.

    Raises:
        ValueError: accelerate has prepared the model or the loader already; it is to shard the weights.
    """
    check_accelerator(accelerator, model, loader)
    model = accelerator.prepare_model(model, evaluation_mode=True)  # without DDP; mixed precision all the same
    optimizer = accelerator.prepare_optimizer(optimizer)
    return Lookaround(model, k, **options), model, optimizer, whole_loader(accelerator, loader)


def whole_loader(accelerator: Accelerator, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Returns a loader that gives every process all of the data, on its device, in the order of the loader's own."""
    device = accelerator.device
    return prepare_data_loader(loader, device, 1, 0, put_on_device=accelerator.device_placement, dispatch_batches=False)


def check_accelerator(accelerator: Accelerator, model: nn.Module, loader: DataLoader[Any] | None = None) -> None:
    """Raises ValueError, saying what to do, where replicas could not train on their own."""
    if accelerator.distributed_type in SHARDED_TYPES:
        name = accelerator.distributed_type.value
        raise ValueError(f"{name} spreads weights over the processes: Lookaround needs all of a replica on each")
    known = accelerator.num_processes > 1 and any(each is model for each in accelerator._models)
    inside = known and not getattr(model, "_is_accelerate_prepared", False)  # what is around it has the mark
    if inside or isinstance(model, DistributedDataParallel):
        raise ValueError(
            "accelerator.prepare wrapped the model in DDP, which averages gradients and so keeps all replicas alike: "
            "leave the model out of it, and give it to `prepare` of lookaround_ddp.integrations.accelerate"
        )
    if isinstance(loader, DataLoaderShard | DataLoaderDispatcher) and accelerator.num_processes > 1:
        raise ValueError(
            "accelerator.prepare gives each process a share of the loader's data: leave the loader out of it, and "
            "give it to `prepare` of lookaround_ddp.integrations.accelerate"
        )
