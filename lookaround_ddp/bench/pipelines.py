"""`bench data`: how fast the loader workers and the device augment images that are in memory."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, islice

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torchvision.transforms import AutoAugmentPolicy

from lookaround_ddp.bench import machine
from lookaround_ddp.bench.machine import Figures
from lookaround_ddp.config import AugmentConfig
from lookaround_ddp.data.augment import train_pipelines
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.device import DeviceIterations, batched, pixels
from lookaround_ddp.data.images import Arrays
from lookaround_ddp.data.loader import Iterations, Plan, load

IMAGES, SIDE = 8192, 32
LISTS = (
    ("crop", "hflip"),
    ("crop", "randaugment", "rotation"),
    ("crop", "autoaugment"),
    ("perspective",),
    ("random_resized_crop",),
)
WARM_UP = 2  # batches, beside those that workers have made ahead
SECONDS = 0.3  # that a figure is measured, at least
NOTES = f"""\
{IMAGES} made-up images of {SIDE} x {SIDE} pixels, RGB, as CIFAR's; images/s that arrive in the training process when it
does nothing else. Workers: PIL and torchvision, image by image, in the training process or in as many loader
processes as stand there. Device: the same augmentations of whole batches, drawn for each image alone, by one
thread of the CPU or by the GPU. The competitors take turns. Ratio: the CPU to the workers' pipeline on one core, too,
a GPU to the loader processes; of the medians, and the smallest and largest of a round."""

ONE_CORE, CPU, GPU = "workers: none, 1 core", "device: CPU, 1 core", "device: GPU"
Competitors = dict[str, Callable[[], float]]  # name -> images/s, measured once


def report(options: argparse.Namespace) -> Figures:
    """Measures both pipelines, prints the table and returns its figures.

    Args:
        options: `batch_size`, `workers` (0: as many as there are cores) and `rounds`, as the command line has them.

    Raises:
        UserError: a number that is too small.
    """
    machine.at_least({"--rounds": options.rounds, "--batch-size": options.batch_size}, 1)
    batch_size = min(options.batch_size, IMAGES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = options.workers or cores
    threads, gpus = torch.get_num_threads(), min(1, torch.cuda.device_count())
    figures: Figures = {
        "machine": machine.describe_machine("none", "1", threads, gpus)
        | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set")},
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "batch_size": batch_size,
        "rounds": options.rounds,
        "rows": {},
    }
    progress = Console(stderr=True, highlight=False)
    data = _made_up()
    stored = {device: pixels(data.train, torch.device(device)) for device in ("cpu", "cuda")[: 1 + gpus]}
    for augmentations in LISTS:
        name = " + ".join(augmentations)
        progress.print(f"data: {name}", markup=False)
        speeds = _measure(_competitors(augmentations, data, stored, batch_size, workers), options.rounds)
        figures["rows"][name] = {one: _row(one, speeds, workers) for one in speeds}
    _print(figures, Console())
    return figures


def _made_up() -> Dataset:
    """Smooth pictures of random colours."""
    small = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for each in small]
    split = Arrays(np.stack([np.asarray(each) for each in large]), [0] * IMAGES)
    half = (0.5, 0.5, 0.5)
    return Dataset(split, split, 2, 3, SIDE, SIDE, half, half, AutoAugmentPolicy.CIFAR10)


def _competitors(
    augmentations: tuple[str, ...], data: Dataset, stored: dict[str, torch.Tensor], batch_size: int, workers: int
) -> Competitors:
    *before, own = augmentations
    (pipeline,) = train_pipelines(AugmentConfig(before=tuple(before)), [own], data, 0.0)
    plan = Plan(IMAGES, batch_size, 0, shared=True, drop_last=True)
    by_image = Iterations(data.train, plan, {0: [pipeline]})

    def competitor(batches: Iterations, processes: int = 0) -> Callable[[], float]:
        return lambda: _speed(batches, batch_size, processes)

    result = {ONE_CORE: competitor(by_image), _workers(workers): competitor(by_image, workers)}
    for device, images in stored.items():
        on_device = DeviceIterations(images, data.train, plan, {0: [batched(pipeline)]})
        result[CPU if device == "cpu" else GPU] = competitor(on_device)
    return result


def _workers(processes: int) -> str:
    return f"workers: {processes} process{'es' * (processes > 1)}"


def _measure(competitors: Competitors, rounds: int) -> dict[str, list[float]]:
    speeds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(rounds):
        for name in list(competitors) if number % 2 == 0 else list(reversed(competitors)):
            speeds[name].append(competitors[name]())
    return speeds


def _speed(batches: Iterations, batch_size: int, workers: int) -> float:
    """Images per second, over batches that were not begun before the clock was."""
    ahead = 2 * workers + WARM_UP  # a loader asks each of its workers for two
    arriving: Iterator[object] = load(batches, range(10**6), workers, False)
    with closing(arriving):  # type: ignore[type-var]  # load is a generator: closing it ends the workers
        for _ in islice(arriving, ahead):
            pass
        _finish()
        start = time.perf_counter()
        for number in count(1):
            next(arriving)
            if time.perf_counter() - start >= SECONDS and number >= ahead:
                break
        _finish()
        return number * batch_size / (time.perf_counter() - start)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(name: str, speeds: dict[str, list[float]], workers: int) -> Figures:
    row: Figures = {"images_per_second": machine.spread(speeds[name]), "ratio": None, "ratio_to": None}
    if name in (CPU, GPU):
        row["ratio_to"] = ONE_CORE if name == CPU else _workers(workers)
        row["ratio"] = machine.ratio(speeds[name], speeds[row["ratio_to"]])
    return row


def _print(figures: Figures, console: Console) -> None:
    machine.print_machine(figures["machine"], console)
    versions = f"torchvision {figures['torchvision']} | Pillow {figures['pillow']}"
    setting = f"Data: batches of {figures['batch_size']}; n = {figures['rounds']}"
    for line in (versions, setting):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("images/s", no_wrap=True)
    for heading in ("min", "median", "max", "ratio", "of rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for augmentations, rows in figures["rows"].items():
        table.add_row(augmentations)
        for name, row in rows.items():
            ratio = row["ratio"]
            cells = [f"{ratio['of_medians']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}"] if ratio else []
            table.add_row(f"  {name}", *machine.spread_cells(row["images_per_second"], 0), *cells)
    console.print(table)
    console.print(NOTES, markup=False, highlight=False, soft_wrap=True)
