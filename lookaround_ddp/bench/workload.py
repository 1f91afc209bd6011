"""What `bench train` trains, as arguments of the trainer and of the loops beside it."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lookaround_ddp.config import load_config
from lookaround_ddp.data import open_dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.models import create_model

WARM_UP = 10  # iterations that are not counted: loader processes start, memory is allocated


AVERAGE_EVERY = 5  # iterations between averages, the default of the authors' command line


BEYOND_THE_END = "1000000.0"  # epochs between evaluations and checkpoints; the trainer does both once, at the end


@dataclass(frozen=True)
class Workload:
    model: str
    data: str
    root: str
    batch_size: int
    workers: int
    channels_last: bool
    pipeline: str = "workers"
    precision: str = "fp32"
    compile: bool = False
    fast_kernels: bool = False
    size: int | None = None
    train_images: int | None = None
    epochs: int = 1
    iterations: int = 1

    def overrides(self, folder: Path, replicas: int) -> list[str]:
        """Returns the trainer's arguments. JSON is YAML, so any name and path is quoted right."""
        own = ["crop+hflip"]  # for every replica, since with unequal work the slower rank would be measured
        values = {
            "out": str(folder),
            "epochs": self.epochs,
            "channels_last": self.channels_last,
            "model.name": self.model,
            "data.name": self.data,
            "data.root": self.root,
            "data.train_images": self.train_images,
            "data.batch_size": self.batch_size,
            "data.workers": self.workers,
            "data.drop_last": True,
            "data.pipeline": self.pipeline,
            "data.size": self.size,
            "precision": self.precision,
            "compile": self.compile,
            "deterministic": not self.fast_kernels,
            "replicas": [own] * replicas,
            "optimizer.lr": 0.05,
            "schedule.name": "constant",
            "average.k": AVERAGE_EVERY,
            "record.every": WARM_UP,
        }
        never = [f"evaluate.every={BEYOND_THE_END}", f"checkpoint.every={BEYOND_THE_END}"]
        return [f"{key}={json.dumps(value)}" for key, value in values.items()] + never

    def loop_arguments(self) -> list[str]:
        """Returns the arguments of the hand-written loops."""
        values = {
            "--model": self.model,
            "--data": self.data,
            "--root": self.root,
            "--batch-size": self.batch_size,
            "--workers": self.workers,
            "--iterations": self.iterations,
            "--warm-up": WARM_UP,
            "--precision": self.precision,
        }
        limits = {"--train-images": self.train_images, "--size": self.size}
        values |= {name: value for name, value in limits.items() if value is not None}
        flags = {"--channels-last": self.channels_last, "--compile": self.compile, "--fast-kernels": self.fast_kernels}
        return [f"{name}={value}" for name, value in values.items()] + [name for name, on in flags.items() if on]


def planned(options: argparse.Namespace) -> tuple[Workload, nn.Module, tuple[int, int, int]]:
    """Returns the workload, checked before any subprocess starts, its network, and an image's shape (c, h, w).

    Raises:
        UserError: an unknown model or dataset, missing images, batches larger than the dataset.
    """
    names = ["data", "root", "batch_size", "workers", "channels_last", "pipeline", "precision", "compile"]
    given = {name: getattr(options, name) for name in [*names, "fast_kernels"]}
    workload = Workload(model=options.train_model, size=options.image_size, **given)
    config = load_config(None, workload.overrides(Path("unused"), 1))
    try:
        dataset = open_dataset(config.data, config.seed)
    except UserError as error:
        raise UserError(f"{error} (here, --root DIR sets data.root)") from None
    model = create_model(config.model, dataset.classes, dataset.channels)
    per_epoch = len(dataset.train) // workload.batch_size
    if per_epoch == 0:
        raise UserError(f"--batch-size is {workload.batch_size}, more than the {len(dataset.train)} training images")
    # Whole epochs are trained, so a large dataset is cut to the images that the iterations need.
    limit = options.iterations * workload.batch_size if options.iterations < per_epoch else None
    per_epoch = min(per_epoch, options.iterations)
    epochs = -(-options.iterations // per_epoch)
    sizes = {"train_images": limit, "epochs": epochs, "iterations": epochs * per_epoch}
    return Workload(**(vars(workload) | sizes)), model, (dataset.channels, dataset.size, dataset.size)
