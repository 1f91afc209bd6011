"""What every measurement is reported with: the machine, the spread of the repeats, and a clean end."""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lookaround_ddp.errors import UserError
from lookaround_ddp.files import with_filename
from lookaround_ddp.tables import print_table

Figures = dict[str, Any]  # JSON-able


PIPE_WIDTH = 120  # characters of a table that no terminal limits


def describe_machine(backend: str, ranks: str, threads: int, gpus: int = 0) -> Figures:
    """Returns the hardware, the versions and the setting, to stand above a table and in a JSON file.

    Args:
        backend: what the ranks communicate with.
        ranks: how many processes.
        threads: of each rank.
        gpus: how many GPUs take part.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if gpus else None,
        "backend": backend,
        "ranks": ranks,
        "threads_per_rank": threads,
        "OMP_NUM_THREADS": str(threads),  # `rank_environment` sets it, whatever the caller's is
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def print_machine(machine: Figures) -> None:
    gpus = [f"{len(machine['gpus'])} x {machine['gpus'][0]}"] if machine["gpus"] else []
    hardware = [f"{machine['processor']}, {machine['cores']} cores", *gpus, machine["system"]]
    versions = [f"Python {machine['python']}", f"torch {machine['torch']}"]
    versions += [f"CUDA {machine['cuda']}"] if machine["cuda"] else []
    setting = [
        f"backend {machine['backend']}",
        f"ranks {machine['ranks']}",
        f"threads per rank {machine['threads_per_rank']} (OMP_NUM_THREADS={machine['OMP_NUM_THREADS']})",
    ]
    if machine["load_at_start"] is not None:
        setting.append(f"load average at the start {machine['load_at_start']}")
    for line in (hardware, versions, setting):
        print(" | ".join(line))


def rank_environment(threads: int) -> dict[str, str]:
    """Returns the environment of a measured process: with so many threads, whatever the caller's has."""
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return dict(os.environ) | dict.fromkeys(variables, str(threads))


def now(device: torch.device) -> float:
    """Waits until the device has finished its work; returns the clock in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def print_figures(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; in a file or a pipe it may be PIPE_WIDTH wide."""
    print_table(headings, rows, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_progress(text: str) -> None:
    """Prints a line on standard error, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yields (round, name): every name once in a round, in reversed order in every second one.

    So a machine that gets slower or faster favours no name, and none always follows the same one.
    """
    names = list(names)
    for number in range(rounds):
        yield from ((number, name) for name in (names if number % 2 == 0 else reversed(names)))


def in_turn(competitors: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Returns what each competitor measures in each round; they take turns."""
    values: dict[str, list[float]] = {name: [] for name in competitors}
    for _, name in turns(competitors, rounds):
        values[name].append(competitors[name]())
    return values


def spread(values: Sequence[float]) -> Figures:
    """Returns n, min, median, max, and the values themselves for those who want another statistic."""
    return {
        "n": len(values),
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "values": list(values),
    }


def round_ratios(own: Sequence[float], reference: Sequence[float]) -> Figures:
    """Returns the ratio of the medians, and the smallest and largest ratio within a round."""
    ratios = [one / other for one, other in zip(own, reference, strict=True)]
    return {
        "of_medians": statistics.median(own) / statistics.median(reference),
        "min": min(ratios),
        "max": max(ratios),
    }


def ratio_cells(ratios: Figures | None) -> list[str]:
    """Formats the ratio of the medians, and the range of the rounds'; empty cells for None."""
    return (
        ["", ""] if ratios is None else [f"{ratios['of_medians']:.2f}", f"{ratios['min']:.2f} to {ratios['max']:.2f}"]
    )


def spread_cells(figures: Mapping[str, Any], decimals: int) -> list[str]:
    """Formats min, median and max: so many decimals at most, and four digits unless the whole part has more."""
    values = [figures[key] for key in ("min", "median", "max")]
    return [f"{value:.{max(0, min(decimals, 4 - len(str(int(value)))))}f}" for value in values]


def at_least(options: Mapping[str, int], least: int) -> None:
    """Raises UserError for the first option whose value is smaller than that."""
    for name, value in options.items():
        if value < least:
            raise UserError(f"{name} is {value}: give {least} or more")


def check_writable(path: Path | None) -> None:
    """Raises UserError if the figures could not be written there; before minutes of measuring, not after."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--json {path}: that is a folder, give a file")
    target = path if path.exists() else path.absolute().parent
    if not os.access(target, os.W_OK):
        raise UserError(f"--json {path}: {target} {'is not writable' if target.exists() else 'does not exist'}")


def write_figures(path: Path, figures: Figures) -> None:
    with with_filename(path):
        path.write_text(json.dumps(figures, indent=1) + "\n")


@contextmanager
def ended_tidily() -> Iterator[None]:
    """Turns a kill or a closed terminal into an exception, so that whoever started processes also ends them."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _processor() -> str:
    """Returns the processor's name; /proc/cpuinfo knows more than `platform`."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
