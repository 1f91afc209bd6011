"""Small images and their batches, made on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms as T

from lookaround_ddp.config.schema import Augmentation, AugmentConfig
from lookaround_ddp.data.batches import BatchPlan
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.device.batches import DeviceIterations, batched, pixels
from lookaround_ddp.data.images import Arrays
from lookaround_ddp.data.transforms import train_pipelines

PLAIN = AugmentConfig()
CPU = torch.device("cpu")


def dataset(images: int = 40, channels: int = 3, side: int = 20, size: int | None = None) -> Dataset:
    shape = (images, side, side, 3) if channels == 3 else (images, side, side)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    split = Arrays(values, list(range(images)))
    half = (0.5,) * channels
    return Dataset(split, split, images, channels, size or side, side, half, half, T.AutoAugmentPolicy.CIFAR10)


def iterations(
    data: Dataset,
    own: list[Augmentation],
    batch: int = 40,
    seed: int = 0,
    replica: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> DeviceIterations:
    pipelines = {replica: [batched(each) for each in train_pipelines(PLAIN, own, data, 0.0)]}
    plan = BatchPlan(len(data.train), batch, seed, shared=True)
    return DeviceIterations(pixels(data.train, CPU), data.train, plan, pipelines, shard, shards)


def epoch(batches: DeviceIterations, number: int = 0, update: int = 0) -> Tensor:
    """The images of an epoch as the first replica sees them, by their place in the split: the labels are the places."""
    per_epoch = batches.plan.iterations
    hosted = [batches[number * per_epoch + i][0][update] for i in range(per_epoch)]
    order = torch.cat([batch.labels for batch in hosted]).argsort()
    return torch.cat([batch.images for batch in hosted])[order]
