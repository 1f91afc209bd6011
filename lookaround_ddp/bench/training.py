"""`bench train`: the trainer's images per second, beside loops written by hand, and on 2 ranks beside 1."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lookaround_ddp.bench import figures as machine
from lookaround_ddp.bench import flops
from lookaround_ddp.bench.figures import Figures
from lookaround_ddp.bench.processes import run_module
from lookaround_ddp.bench.ranks import refuse_job
from lookaround_ddp.bench.workload import AVERAGE_EVERY, WARM_UP, Workload, planned

TRAINER, BARE, TIMM, BATCHED = "trainer, d = 1", "bare loop", "timm's loader", "batched loop"


ORIGINAL, ONE_RANK, TWO_RANKS = "original, d = 2", "trainer, d = 2, 1 rank", "trainer, d = 2, 2 ranks"


REFERENCES = {TRAINER: BARE, TIMM: BARE, BATCHED: BARE, TWO_RANKS: ONE_RANK}


TRAINING_NOTES = f"""\
Images/s of all d replicas together after {WARM_UP} iterations of warm-up, without evaluation and checkpoints; n
fresh processes each, which take turns. Bare loop: lookaround_ddp/bench/bare_loop.py, a loop as one writes it by
hand, with the same network, images, augmentation, optimizer, batch size and threads; timm_loop.py: with timm's
loader; batched_loop.py: bytes on the device, cropped and flipped as a batch. Original: original_loop.py, which does
in one process what the published code does: d networks in turn, for each a loader with as many workers, PIL, state
dicts averaged every {AVERAGE_EVERY} iterations. Ratio: of d = 1 to the bare loop, 2 ranks to 1 rank; times as fast:
as the original; of the medians, and the smallest and largest of a round. MFU: the operations of forward and backward
(PyTorch's FlopCounterMode: matrix products and convolutions) over those that the processes' cores or GPUs do in
matrix products of this precision (fp32 on a GPU as its convolutions are, TF32), measured in this run, in turn with
the others. On a GPU the trainer takes deterministic kernels, unless --fast-kernels, and the loops PyTorch's default."""


@dataclass(frozen=True)
class Contest:
    """A way to train that is measured.

    Args:
        run: trains, given a folder of its own, and returns the seconds after the warm-up.
    """

    replicas: int
    ranks: int
    run: Callable[[Path], float]


def measure_and_print_training(options: argparse.Namespace) -> Figures:
    """Measures the trainer, prints the table and returns its figures.

    Args:
        options: `train_model`, `data`, `root`, `batch_size`, `workers`, `channels_last`, `iterations` and
            `rounds`, as the command line has them.

    Raises:
        UserError: an unknown model or dataset, missing images, a number that is too small.
    """
    refuse_job("train")
    machine.at_least({"--rounds": options.rounds}, 1)
    machine.at_least({"--iterations": options.iterations}, WARM_UP + 1)
    workload, model, shape = planned(options)
    operations = flops.per_image(model, shape)
    del model
    gpus = min(2, torch.cuda.device_count())
    setting = machine.describe_machine("nccl" if gpus == 2 else "gloo", "1 and 2", 1, gpus)
    with machine.ended_tidily(), tempfile.TemporaryDirectory(prefix="lookaround_bench_") as folder:
        seconds, peaks = _measure_contests(workload, options.rounds, Path(folder))
    figures = {
        "machine": setting,
        "model": workload.model,
        "data": workload.data,
        "batch_size": workload.batch_size,
        "workers": workload.workers,
        "channels_last": workload.channels_last,
        "pipeline": workload.pipeline,
        "precision": workload.precision,
        "compile": workload.compile,
        "fast_kernels": workload.fast_kernels,
        "size": workload.size,
        "iterations": workload.iterations,
        "warm_up": WARM_UP,
        "rounds": options.rounds,
        "flops_per_image": operations,
        "peak": {"precision": workload.precision, "flops_per_second": machine.spread(peaks) if peaks else None},
        "rows": _contest_rows(workload, seconds, operations, peaks, gpus),
    }
    _print_training(figures)
    return figures


def _contests(workload: Workload) -> dict[str, Contest]:
    loops = "lookaround_ddp.bench."
    own = workload.loop_arguments()
    original = [f"{loops}original_loop", *own, "--replicas=2", f"--k={AVERAGE_EVERY}"]
    return {
        TRAINER: Contest(1, 1, partial(_trainer, workload, 1, 1)),
        BARE: Contest(1, 1, partial(_loop, [f"{loops}bare_loop", *own])),
        TIMM: Contest(1, 1, partial(_loop, [f"{loops}timm_loop", *own])),
        BATCHED: Contest(1, 1, partial(_loop, [f"{loops}batched_loop", *own])),
        ORIGINAL: Contest(2, 1, partial(_loop, original)),
        ONE_RANK: Contest(2, 1, partial(_trainer, workload, 2, 1)),
        TWO_RANKS: Contest(2, 2, partial(_trainer, workload, 2, 2)),
    }


def _measure_contests(workload: Workload, rounds: int, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Measures seconds of each contest, and operations a second of matrix products; no peaks if it cannot."""
    contests = _contests(workload)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds: dict[str, list[float]] = {name: [] for name in contests}
    peaks: list[float | None] = []
    for number, name in machine.turns(contests, rounds):
        if len(peaks) == number:  # a round begins
            peaks.append(flops.product_speed(device, workload.precision))
        start = time.perf_counter()
        seconds[name].append(contests[name].run(folder / f"{number}-{list(contests).index(name)}"))
        speed = _images(workload, contests[name]) / seconds[name][-1]
        text = f"train: round {number + 1} of {rounds}: {name}: {speed:.0f} images/s"
        machine.print_progress(f"{text} ({time.perf_counter() - start:.0f} s)")
    return seconds, [peak for peak in peaks if peak is not None]


def _images(workload: Workload, contest: Contest) -> int:
    """Returns how many images all replicas together train on after the warm-up."""
    return contest.replicas * workload.batch_size * (workload.iterations - WARM_UP)


def _trainer(workload: Workload, replicas: int, ranks: int, out: Path) -> float:
    """Runs the trainer; returns the seconds after its warm-up, from its metrics.jsonl."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    run_module([*torchrun, "lookaround_ddp", "train", *workload.overrides(out, replicas)])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in lines if "images_per_second" in line]
    assert (first["iteration"], last["iteration"]) == (WARM_UP, workload.iterations)
    return float(last["seconds"] - first["seconds"])


def _loop(arguments: Sequence[str], out: Path) -> float:
    return float(json.loads(run_module(arguments).splitlines()[-1])["seconds"])


def _contest_rows(
    workload: Workload,
    seconds: Mapping[str, list[float]],
    operations: int | None,
    peaks: Sequence[float],
    gpus: int,
) -> Figures:
    contests = _contests(workload)
    speeds = {name: [_images(workload, contests[name]) / each for each in times] for name, times in seconds.items()}
    peak = statistics.median(peaks) if peaks else None
    rows = {}
    for name, contest in contests.items():
        reference, several = REFERENCES.get(name), contest.replicas > 1
        units = min(contest.ranks, gpus) or contest.ranks
        rows[name] = {
            "images_per_second": machine.spread(speeds[name]),
            "ratio": machine.round_ratios(speeds[name], speeds[reference]) if reference else None,
            "ratio_to": reference,
            "mfu": flops.utilization(operations, statistics.median(speeds[name]), peak, units),
            "seconds": machine.spread(seconds[name]) if several else None,
            "times_as_fast": machine.round_ratios(speeds[name], speeds[ORIGINAL])
            if several and name != ORIGINAL
            else None,
        }
    return rows


def _print_training(figures: Figures) -> None:
    machine.print_machine(figures["machine"])
    parts = [f"{figures['model']} on {figures['data']}", f"batches of {figures['batch_size']}"]
    parts += [
        f"{figures['workers']} workers",
        *(name for name in ("channels_last", "compile", "fast_kernels") if figures[name]),
    ]
    parts += [figures["precision"], f"data.pipeline {figures['pipeline']}"]
    parts += [f"{figures['iterations']} iterations; n = {figures['rounds']}"]
    print(f"Training: {', '.join(parts)}")
    print(_operations(figures))
    table = []
    for name, row in figures["rows"].items():
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        speeds = machine.spread_cells(row["images_per_second"], 0)
        table.append([name, *speeds, *machine.ratio_cells(row["ratio"]), mfu])
    machine.print_figures(("images/s", "min", "median", "max", "ratio", "of rounds", "MFU"), table)
    table = [
        [name, *machine.spread_cells(row["seconds"], 2), *machine.ratio_cells(row["times_as_fast"])]
        for name, row in figures["rows"].items()
        if row["seconds"] is not None
    ]
    first = f"s for {figures['iterations'] - figures['warm_up']} iterations"
    machine.print_figures((first, "min", "median", "max", "times as fast", "of rounds"), table)
    print(TRAINING_NOTES)


def _operations(figures: Figures) -> str:
    operations, peak = figures["flops_per_image"], figures["peak"]["flops_per_second"]
    counted = "-" if operations is None else f"{operations / 1e6:.1f}"
    one = "GPU" if figures["machine"]["gpus"] else "core"
    speed = "-" if peak is None else f"{peak['median'] / 1e9:.1f}"
    product = f"{figures['peak']['precision']} matrix product, one {one}"
    return f"Forward and backward of an image: {counted} MFLOP | {product}: {speed} GFLOP/s"
