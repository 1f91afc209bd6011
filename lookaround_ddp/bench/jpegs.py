"""The part of `bench data` on JPEG files: images decoded from them, beside those that a network would consume."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils import data
from torchvision import io
from torchvision.transforms import AutoAugmentPolicy, v2

from lookaround_ddp.bench import figures as machine
from lookaround_ddp.bench.figures import Figures, in_turn, now
from lookaround_ddp.bench.throughput import LEAST_SECONDS, Competitors, images_per_second, processes_name
from lookaround_ddp.config import AugmentConfig, ModelConfig
from lookaround_ddp.data import BatchPlan, Dataset, Files, Iterations, train_pipelines
from lookaround_ddp.data.device import one_thread
from lookaround_ddp.models import autocast, create_model

FILE_COUNT, WIDTH, HEIGHT, QUALITY = 64, 500, 375, 90


DETAILS = {4: 90, 16: 40, 64: 24, 256: 48}  # bumps across a picture -> how high they are, in grey values


SIDE, CLASSES = 224, 1000


CPU_BATCH = 8  # images of a batch if a CPU decodes or trains; with a larger one, a figure would take seconds


PIL, TENSORS, TENSORS_ON_GPU = "PIL, 1 core", "torchvision, 1 core", "torchvision, GPU"


JPEG_NOTES = f"""\
{FILE_COUNT} made-up JPEG files of {WIDTH} x {HEIGHT} pixels, quality {QUALITY}, read from the page cache, decoded, a
random box of each resized to {SIDE} x {SIDE} and perhaps flipped; images/s that arrive in the training process when
it does nothing else. PIL: data.pipeline=workers, in that process or in as many loader processes as stand there.
torchvision: io.decode_jpeg, then transforms v2 on each tensor; GPU: a list of files at once (nvJPEG), cropped there.
The last row is what training takes: steps of the network on random images that lie on the device, in fp32 with all
threads on a CPU, in bf16 and channels_last on a GPU. Ratio: to that row; below 1, the network starves. On a CPU, the
two also share the cores."""


def check_model(consumer: str) -> None:
    """Raises UserError for an unknown model, before anything is measured."""
    create_model(ModelConfig(name=consumer), CLASSES)


def measure_jpegs(consumer: str, batch_size: int, workers: int, rounds: int) -> Figures:
    """Measures all competitors and the model that consumes the images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch_sizes = {"cpu": min(batch_size, CPU_BATCH), "cuda": min(batch_size, FILE_COUNT)}
    training = f"training: {consumer}"
    with tempfile.TemporaryDirectory(prefix="lookaround_bench_") as folder:
        paths = write_jpegs(Path(folder), FILE_COUNT)
        competitors = _decoders(paths, batch_sizes, workers)
        competitors[training] = _consumer(consumer, batch_size if device.type == "cuda" else CPU_BATCH, device)
        speeds = in_turn(competitors, rounds)
        sizes = [path.stat().st_size for path in paths]
    rows = {}
    for name, values in speeds.items():
        consumes = name == training
        rows[name] = {
            "images_per_second": machine.spread(values),
            "ratio": None if consumes else machine.round_ratios(values, speeds[training]),
            "ratio_to": None if consumes else training,
        }
    return {"consumer": consumer, "mean_bytes": sum(sizes) / len(sizes), "rows": rows}


def write_jpegs(folder: Path, images: int) -> list[Path]:
    """Writes files of smooth pictures with some detail, which compress about as photographs do; returns their paths."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(images)]
    for path in paths:
        values = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
        for bumps, height in DETAILS.items():
            small = Image.fromarray(generator.integers(0, 256, (bumps * 3 // 4, bumps, 3), dtype=np.uint8))
            large = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
            values += height * (large / 127.5 - 1)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return paths


class Decoded(data.Dataset[torch.Tensor]):
    """Number -> a batch decoded by torchvision: uint8 (n, 3, SIDE, SIDE), on the device."""

    def __init__(self, paths: list[Path], batch_size: int, device: torch.device) -> None:
        self.paths, self.batch_size, self.device = paths, batch_size, device
        self.crop = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])

    def __getitem__(self, number: int) -> torch.Tensor:
        first = number * self.batch_size
        files = [
            io.read_file(str(self.paths[each % len(self.paths)])) for each in range(first, first + self.batch_size)
        ]
        images = io.decode_jpeg(files, io.ImageReadMode.RGB, device=self.device)
        return torch.stack([self.crop(image) for image in images])


def _decoders(paths: list[Path], batch_sizes: dict[str, int], workers: int) -> Competitors:
    small, large = batch_sizes["cpu"], batch_sizes["cuda"]
    split, half = Files([str(path) for path in paths], [0] * len(paths)), (0.5, 0.5, 0.5)
    dataset = Dataset(split, split, CLASSES, 3, SIDE, None, half, half, AutoAugmentPolicy.IMAGENET)
    pipelines = train_pipelines(AugmentConfig(), ["random_resized_crop+hflip"], dataset, 0.0)
    by_image = Iterations(split, BatchPlan(len(paths), small, 0, shared=True, drop_last=True), {0: pipelines})
    result: Competitors = {
        PIL: partial(images_per_second, by_image, small, 0),
        f"PIL, {processes_name(workers)}": partial(images_per_second, by_image, small, workers),
        TENSORS: _on_one_thread(partial(images_per_second, Decoded(paths, small, torch.device("cpu")), small, 0)),
    }
    if torch.cuda.is_available():
        result[TENSORS_ON_GPU] = partial(images_per_second, Decoded(paths, large, torch.device("cuda")), large, 0)
    return result


def _on_one_thread(measure: Callable[[], float]) -> Callable[[], float]:
    def measure_there() -> float:
        with one_thread():
            return measure()

    return measure_there


def _consumer(name: str, batch_size: int, device: torch.device) -> Callable[[], float]:
    """Makes a function that measures training steps in images per second."""
    layout: Any = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = create_model(ModelConfig(name=name), CLASSES).to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch_size, 3, SIDE, SIDE, device=device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (batch_size,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast("bf16" if device.type == "cuda" else "fp32", device):
            loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    def measure() -> float:
        start = now(device)
        step()  # also the warm-up
        steps = math.ceil(LEAST_SECONDS / (now(device) - start))
        start = now(device)
        for _ in range(steps):
            step()
        return steps * batch_size / (now(device) - start)

    return measure


def print_jpegs(figures: Figures) -> None:
    first = f"images/s, JPEGs of {figures['mean_bytes'] / 1e3:.0f} kB"
    table = [
        [name, *machine.spread_cells(row["images_per_second"], 1), *machine.ratio_cells(row["ratio"])]
        for name, row in figures["rows"].items()
    ]
    machine.print_figures((first, "min", "median", "max", "ratio", "of rounds"), table)
    print(JPEG_NOTES)
