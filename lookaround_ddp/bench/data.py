"""`bench data`: how fast the loader workers and the device augment images that are in memory, or in JPEG files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy

from lookaround_ddp.bench import figures as machine
from lookaround_ddp.bench import jpegs
from lookaround_ddp.bench.figures import Figures, in_turn
from lookaround_ddp.bench.throughput import Competitors, images_per_second, processes_name
from lookaround_ddp.config import AugmentConfig
from lookaround_ddp.data import Arrays, BatchPlan, Dataset, Iterations, train_pipelines
from lookaround_ddp.data.device import DeviceIterations, batched, pixels

MADE_UP_IMAGES, CIFAR_SIDE = 8192, 32


LISTS = (
    ("crop", "hflip"),
    ("crop", "randaugment", "rotation"),
    ("crop", "autoaugment"),
    ("perspective",),
    ("random_resized_crop",),
)


DATA_NOTES = f"""\
{MADE_UP_IMAGES} made-up images of {CIFAR_SIDE} x {CIFAR_SIDE} pixels, RGB, as CIFAR's; images/s that arrive in the
training process when it does nothing else. Workers: PIL and torchvision, image by image, in the training process or
in as many loader processes as stand there. Device: the same augmentations of whole batches, drawn for each image
alone, by one thread of the CPU or by the GPU. The competitors take turns. Ratio: the CPU to the workers' pipeline on
one core, too, a GPU to the loader processes; of the medians, and the smallest and largest of a round."""


ONE_CORE, DEVICE_CPU, DEVICE_GPU = "workers: none, 1 core", "device: CPU, 1 core", "device: GPU"


def measure_and_print_data(options: argparse.Namespace) -> Figures:
    """Measures both pipelines, prints the table and returns its figures.

    Args:
        options: `batch_size`, `workers` (0: as many as there are cores), `rounds` and `consumer`, as the command line
            has them.

    Raises:
        UserError: a number that is too small, an unknown model.
    """
    machine.at_least({"--rounds": options.rounds, "--batch-size": options.batch_size}, 1)
    jpegs.check_model(options.consumer)
    batch_size = min(options.batch_size, MADE_UP_IMAGES)
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
    data = _made_up()
    stored = {device: pixels(data.train, torch.device(device)) for device in ("cpu", "cuda")[: 1 + gpus]}
    for augmentations in LISTS:
        name = " + ".join(augmentations)
        machine.print_progress(f"data: {name}")
        speeds = in_turn(_pipelines(augmentations, data, stored, batch_size, workers), options.rounds)
        figures["rows"][name] = {one: _pipeline_row(one, speeds, workers) for one in speeds}
    machine.print_progress("data: JPEG files")
    figures["jpeg"] = jpegs.measure_jpegs(options.consumer, options.batch_size, workers, options.rounds)
    _print_pipelines(figures)
    jpegs.print_jpegs(figures["jpeg"])
    return figures


def _made_up() -> Dataset:
    """Makes smooth pictures of random colours."""
    small = np.random.default_rng(0).integers(0, 256, (MADE_UP_IMAGES, 8, 8, 3), dtype=np.uint8)
    large = [Image.fromarray(each).resize((CIFAR_SIDE, CIFAR_SIDE), Image.Resampling.BILINEAR) for each in small]
    split = Arrays(np.stack([np.asarray(each) for each in large]), [0] * MADE_UP_IMAGES)
    half = (0.5, 0.5, 0.5)
    return Dataset(split, split, 2, 3, CIFAR_SIDE, CIFAR_SIDE, half, half, AutoAugmentPolicy.CIFAR10)


def _pipelines(
    augmentations: tuple[str, ...], data: Dataset, stored: dict[str, torch.Tensor], batch_size: int, workers: int
) -> Competitors:
    *before, own = augmentations
    (pipeline,) = train_pipelines(AugmentConfig(before=tuple(before)), [own], data, 0.0)
    plan = BatchPlan(MADE_UP_IMAGES, batch_size, 0, shared=True, drop_last=True)
    by_image = Iterations(data.train, plan, {0: [pipeline]})

    def competitor(batches: Iterations, loaders: int = 0) -> Callable[[], float]:
        return lambda: images_per_second(batches, batch_size, loaders)

    result = {ONE_CORE: competitor(by_image), processes_name(workers): competitor(by_image, workers)}
    for device, images in stored.items():
        on_device = DeviceIterations(images, data.train, plan, {0: [batched(pipeline)]})
        result[DEVICE_CPU if device == "cpu" else DEVICE_GPU] = competitor(on_device)
    return result


def _pipeline_row(name: str, speeds: dict[str, list[float]], workers: int) -> Figures:
    row: Figures = {"images_per_second": machine.spread(speeds[name]), "ratio": None, "ratio_to": None}
    if name in (DEVICE_CPU, DEVICE_GPU):
        row["ratio_to"] = ONE_CORE if name == DEVICE_CPU else processes_name(workers)
        row["ratio"] = machine.round_ratios(speeds[name], speeds[row["ratio_to"]])
    return row


def _print_pipelines(figures: Figures) -> None:
    machine.print_machine(figures["machine"])
    print(f"torchvision {figures['torchvision']} | Pillow {figures['pillow']}")
    print(f"Data: batches of {figures['batch_size']}; n = {figures['rounds']}")
    table = []
    for augmentations, rows in figures["rows"].items():
        table.append([augmentations])
        for name, row in rows.items():
            speeds = machine.spread_cells(row["images_per_second"], 0)
            table.append([f"  {name}", *speeds, *machine.ratio_cells(row["ratio"])])
    machine.print_figures(("images/s", "min", "median", "max", "ratio", "of rounds"), table)
    print(DATA_NOTES)
