"""Batches of images that are in memory, made on the device that trains on them, by whoever trains.

What each image undergoes is drawn for it alone: a function of (seed, epoch, replica, augmentation, image), as in
the workers' pipeline, and of nothing else. The draws are not the workers', so that the weights are not, either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lookaround_ddp import seeds
from lookaround_ddp.config import Config, with_pipeline
from lookaround_ddp.data.batches import Batch, Iterations, Key
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.device.transforms import INSTEAD, make_steps
from lookaround_ddp.data.draws import Draws
from lookaround_ddp.data.images import Files, Images, in_memory, stored_pixels, whole_of
from lookaround_ddp.data.transforms import Pipeline, train_pipelines
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import Code


def resolved(config: Config, dataset: Dataset, code: Code) -> Config:
    """Returns the config with data.pipeline "workers" or "device"; it replaces "auto".

    "auto" becomes "device" wherever that can do all that is asked, and "workers" elsewhere.

    The choice depends on the config and the dataset alone, so that it is the same on all ranks and when the run is
    resumed. It may be "device" on a CPU, too, where one core makes 2 to 11 times the images that a worker does
    (`bench data`).

    Raises:
        UserError: the config says "device", and the images or an augmentation cannot be there.
    """
    if config.data.pipeline == "workers":
        return config
    own = [each for entries in config.replicas for each in entries]
    pipelines = train_pipelines(config.augment, own, dataset, config.label_smoothing, code)
    try:
        _check_in_memory(dataset.train)
        for pipeline in pipelines:
            batched(pipeline)
    except UserError:
        if config.data.pipeline == "device":
            raise
        return with_pipeline(config, "workers")
    return with_pipeline(config, "device")


def batched(pipeline: Pipeline) -> Pipeline:
    """Returns the same pipeline, able to augment a batch on a device.

    Raises:
        UserError: one of its transforms cannot be done there; the message names it.
    """
    steps = make_steps(pipeline.named)

    def augment(images: Tensor, draws: Draws) -> Tensor:
        for step in steps:
            images = step(images, draws)
        return images

    return replace(pipeline, batched=augment)


def pixels(split: Images, device: torch.device) -> Tensor:
    """Copies all images of a split to the device: uint8 (N, C, H, W).

    Raises:
        UserError: the images are in files.
    """
    _check_in_memory(split)
    return stored_pixels(split, range(len(split))).to(device)


class DeviceIterations(Iterations):
    """Iterations whose batches are made on the device, by the process that asks for them.

    Args:
        stored: the split's images, uint8 (N, C, H, W), on the device.
    """

    def __init__(self, stored: Tensor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stored = stored

    def _batches(self, indices: Tensor, keyed: Sequence[tuple[Key, Pipeline]], share: float) -> list[Batch]:
        return [self._batch(indices, key, pipeline, share) for key, pipeline in keyed]

    def _batch(self, indices: Tensor, key: Key, pipeline: Pipeline, share: float) -> Batch:
        assert pipeline.batched is not None
        with one_thread() if self.stored.device.type == "cpu" else nullcontext():
            images = self.stored.index_select(0, indices.to(self.stored.device, non_blocking=True))
            draws = Draws((self.plan.seed, seeds.AUGMENT, *key), indices)
            images = pipeline.batched(images, draws)
        return Batch(images, self.labels[indices], share, pipeline.mix)


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread inside the block.

    The operations are many and small: with two threads they made at most 1.4 times as many images, and a tenth as many
    on cores that were busy.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_in_memory(split: Images) -> None:
    if not in_memory(split):
        where = "in files" if isinstance(whole_of(split), Files) else "made one by one"
        raise UserError(f"data.pipeline=device is for images in memory, and these are {where}: {INSTEAD}")
