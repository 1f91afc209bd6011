"""One replica: its network, optimizer and gradient scaler, and one update of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lookaround_ddp import seeds
from lookaround_ddp.config import Config
from lookaround_ddp.data.augment import Pipeline
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.loader import Batch
from lookaround_ddp.distributed import World
from lookaround_ddp.models import compensate_norm_momentum, create_model, refuse_unsafe_layout
from lookaround_ddp.optim import create_optimizer, set_learning_rate


class Normalize:
    """uint8 images (n, C, H, W) -> floats of zero mean and unit variance, on the device."""

    def __init__(self, dataset: Dataset, world: World, channels_last: bool) -> None:
        shape = (1, dataset.channels, 1, 1)
        self.mean = 255 * torch.tensor(dataset.mean, device=world.device).view(shape)
        self.scale = 1 / (255 * torch.tensor(dataset.std, device=world.device).view(shape))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = world.device

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True).float()
        return images.sub_(self.mean).mul_(self.scale).contiguous(memory_format=self.layout)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


class Replica:
    """A network that trains on its own augmentations.

    Args:
        number: 0..d-1, in the whole run.
        pipelines: its augmentations; one update each in an iteration.
    """

    def __init__(
        self, config: Config, number: int, dataset: Dataset, pipelines: Sequence[Pipeline], world: World
    ) -> None:
        seeds.seed_torch(config.seed, seeds.INITIAL)
        model = create_model(config.model, dataset.classes, dataset.channels)
        if config.average.k != "never" and config.average.norm_momentum == "compensated":
            compensate_norm_momentum(model, world.replicas)
        if config.channels_last and world.device.type == "cpu":
            refuse_unsafe_layout(model)
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model: nn.Module = model.to(world.device).to(memory_format=layout)
        if config.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if world.shard_group is not None:
            self.network = DistributedDataParallel(self.model, process_group=world.shard_group)
        self.optimizer = create_optimizer(config.optimizer, self.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.normalize = Normalize(dataset, world, config.channels_last)
        self.config, self.number, self.pipelines, self.world = config, number, pipelines, world

    def step(self, batches: Sequence[Batch], iteration: int, rate: float) -> Tensor:
        """One update per augmentation; returns the mean loss, shape (), without waiting for the device."""
        self.network.train()
        set_learning_rate(self.optimizer, rate)
        losses = []
        for update, (batch, pipeline) in enumerate(zip(batches, self.pipelines, strict=True)):
            images, targets = self.normalize(batch.images), batch.labels.to(self.world.device, non_blocking=True)
            key = (self.config.seed, self.number, iteration, update, self.world.shard)
            if pipeline.mix is not None and len(images) % 2 == 0:  # timm pairs a batch with its reverse
                seeds.seed_python(key[0], seeds.MIX, *key[1:])
                images, targets = pipeline.mix(images, targets)
            seeds.seed_torch(key[0], seeds.FORWARD, *key[1:])
            losses.append(self._update(images, targets, batch.share))
        return torch.stack(losses).mean()

    def _update(self, images: Tensor, targets: Tensor, share: float) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.config.precision, self.world.device):
            logits = self.network(images)
        smoothing = self.config.label_smoothing if targets.dim() == 1 else 0.0  # mixed targets are smooth already
        loss = cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        self.scaler.scale(loss * share).backward()
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
