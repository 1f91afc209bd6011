"""`bench train`: the trainer's images per second, beside a loop written by hand, and on 2 ranks beside 1."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lookaround_ddp.bench import machine
from lookaround_ddp.bench.machine import Figures
from lookaround_ddp.bench.ranks import refuse_job
from lookaround_ddp.config import UserError
from lookaround_ddp.config_file import load_config
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.models import create_model

WARM_UP = 10  # iterations that are not counted: loader processes start, memory is allocated
NEVER = "1000000.0"  # epochs between evaluations and checkpoints; the trainer does both once, at the end
MISTAKE = 2  # the exit status of a user's mistake
GRACE = 15  # seconds that torchrun has to end its ranks
TRAINER, BARE = "trainer, d = 1", "bare loop"
ONE_RANK, TWO_RANKS = "trainer, d = 2, 1 rank", "trainer, d = 2, 2 ranks"
REFERENCES = {TRAINER: BARE, TWO_RANKS: ONE_RANK}
NOTES = f"""\
Images/s of all d replicas together after {WARM_UP} iterations of warm-up, without evaluation and checkpoints; n fresh
processes each, which take turns. Bare loop: lookaround_ddp/bench/bare_loop.py, a loop as one writes it by hand,
with the same network, images, augmentation, optimizer, batch size and threads. Ratio: d = 1 to the bare loop,
2 ranks to 1 rank; of the medians, and the smallest and largest of a round."""


@dataclass(frozen=True)
class Workload:
    model: str
    data: str
    root: str
    batch_size: int
    workers: int
    channels_last: bool
    train_images: int | None = None
    epochs: int = 1
    iterations: int = 1

    def overrides(self, folder: Path, replicas: int) -> list[str]:
        """The trainer's arguments. JSON is YAML, so any name and path is quoted right."""
        own = ["crop+hflip"]  # for every replica: of unequal work, the slower rank's would be measured
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
            "replicas": [own] * replicas,
            "optimizer.lr": 0.05,
            "schedule.name": "constant",
            "record.every": WARM_UP,
        }
        never = [f"evaluate.every={NEVER}", f"checkpoint.every={NEVER}"]
        return [f"{key}={json.dumps(value)}" for key, value in values.items()] + never

    def loop_arguments(self) -> list[str]:
        """The hand-written loop's."""
        values = {
            "--model": self.model,
            "--data": self.data,
            "--root": self.root,
            "--batch-size": self.batch_size,
            "--workers": self.workers,
            "--iterations": self.iterations,
            "--warm-up": WARM_UP,
        }
        if self.train_images is not None:
            values["--train-images"] = self.train_images
        flags = ["--channels-last"] if self.channels_last else []
        return [f"{name}={value}" for name, value in values.items()] + flags


def report(options: argparse.Namespace) -> Figures:
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
    workload = _workload(options)
    gpus = min(2, torch.cuda.device_count())
    setting = machine.describe_machine("nccl" if gpus == 2 else "gloo", "1 and 2", 1, gpus)
    with machine.ended_tidily(), tempfile.TemporaryDirectory(prefix="lookaround_bench_") as folder:
        speeds = _measure(workload, options.rounds, Path(folder), Console(stderr=True, highlight=False))
    figures = {
        "machine": setting,
        "model": workload.model,
        "data": workload.data,
        "batch_size": workload.batch_size,
        "workers": workload.workers,
        "channels_last": workload.channels_last,
        "iterations": workload.iterations,
        "warm_up": WARM_UP,
        "rounds": options.rounds,
        "rows": {name: _row(name, speeds) for name in speeds},
    }
    _print(figures, Console())
    return figures


def _workload(options: argparse.Namespace) -> Workload:
    """Checks what the subprocesses will be told, before the first of them starts."""
    names = ("data", "root", "batch_size", "workers", "channels_last")
    workload = Workload(model=options.train_model, **{name: getattr(options, name) for name in names})
    config = load_config(None, workload.overrides(Path("unused"), 1))
    try:
        dataset = open_dataset(config.data, config.seed)
    except UserError as error:
        raise UserError(f"{error} (here, --root DIR sets data.root)") from None
    create_model(config.model, dataset.classes, dataset.channels)
    per_epoch = len(dataset.train) // workload.batch_size
    if per_epoch == 0:
        raise UserError(f"--batch-size is {workload.batch_size}, more than the {len(dataset.train)} training images")
    # The trainer trains whole epochs; of a large dataset, as many images as the iterations need are one.
    limit = options.iterations * workload.batch_size if options.iterations < per_epoch else None
    per_epoch = min(per_epoch, options.iterations)
    epochs = -(-options.iterations // per_epoch)
    sizes = {"train_images": limit, "epochs": epochs, "iterations": epochs * per_epoch}
    return Workload(**(vars(workload) | sizes))


def _measure(workload: Workload, rounds: int, folder: Path, progress: Console) -> dict[str, list[float]]:
    contests: dict[str, Callable[[Path], float]] = {
        TRAINER: lambda out: _trainer(workload, out, replicas=1, ranks=1),
        BARE: lambda out: _loop(workload),
        ONE_RANK: lambda out: _trainer(workload, out, replicas=2, ranks=1),
        TWO_RANKS: lambda out: _trainer(workload, out, replicas=2, ranks=2),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contests}
    for number in range(rounds):
        order = list(contests) if number % 2 == 0 else list(reversed(contests))  # so that drift favours none
        for name in order:
            start = time.perf_counter()
            speeds[name].append(contests[name](folder / f"{number}-{list(contests).index(name)}"))
            text = f"train: round {number + 1} of {rounds}: {name}: {speeds[name][-1]:.0f} images/s"
            progress.print(f"{text} ({time.perf_counter() - start:.0f} s)", markup=False, soft_wrap=True)
    return speeds


def _trainer(workload: Workload, out: Path, replicas: int, ranks: int) -> float:
    """Images per second of a real run, from its metrics.jsonl."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    _run([*torchrun, "lookaround_ddp", "train", *workload.overrides(out, replicas)])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in lines if "images_per_second" in line]  # first: the end of the warm-up
    iterations = last["iteration"] - first["iteration"]
    return replicas * workload.batch_size * iterations / (last["seconds"] - first["seconds"])


def _loop(workload: Workload) -> float:
    output = _run(["lookaround_ddp.bench.bare_loop", *workload.loop_arguments()])
    return float(json.loads(output.splitlines()[-1])["images_per_second"])


def _run(arguments: Sequence[str]) -> str:
    """Standard output of `python -m ARGUMENTS`, with one thread per process.

    Raises:
        UserError: the trainer called something a mistake.
        RuntimeError: it failed otherwise.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.rank_environment(threads=1),
        start_new_session=True,  # Ctrl-C is this process's to handle, and the group can be ended as one
    )
    try:
        output, errors = process.communicate()
    finally:
        _end(process)
    if process.returncode == 0:
        return output
    mistakes = [line for line in errors.splitlines() if line.startswith("error: ")]
    if process.returncode == MISTAKE and mistakes:
        raise UserError(mistakes[0].removeprefix("error: "))
    raise RuntimeError(f"python -m {' '.join(arguments)} failed with {process.returncode}:\n{errors[-4000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process that still runs, and its children: torchrun's ranks are in sessions of their own."""
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _row(name: str, speeds: dict[str, list[float]]) -> Figures:
    row: Figures = {"images_per_second": machine.spread(speeds[name]), "ratio": None, "ratio_to": REFERENCES.get(name)}
    if name in REFERENCES:
        row["ratio"] = machine.ratio(speeds[name], speeds[REFERENCES[name]])
    return row


def _print(figures: Figures, console: Console) -> None:
    machine.print_machine(figures["machine"], console)
    parts = [f"{figures['model']} on {figures['data']}", f"batches of {figures['batch_size']}"]
    parts += [f"{figures['workers']} workers", *(["channels_last"] if figures["channels_last"] else [])]
    parts += [f"{figures['iterations']} iterations; n = {figures['rounds']}"]
    console.print(f"Training: {', '.join(parts)}", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("images/s", no_wrap=True)
    for heading in ("min", "median", "max", "ratio", "of rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in figures["rows"].items():
        ratio = row["ratio"]
        cells = [f"{ratio['of_medians']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}"] if ratio else []
        table.add_row(name, *machine.spread_cells(row["images_per_second"], 0), *cells)
    console.print(table)
    console.print(NOTES, markup=False, highlight=False, soft_wrap=True)
