"""`bench average`: what the average step costs, beside PyTorch's own averager and a bare all-reduce."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.bench import machine, memory
from lookaround_ddp.bench.machine import Figures
from lookaround_ddp.config import ModelConfig
from lookaround_ddp.members import BUCKET_BYTES
from lookaround_ddp.models import create_model

CLASSES = 1000
WARM_UP = 3  # the first call opens connections, and moves PeriodicModelAverager's parameters into its buffer
MEMORY_REPEATS = 3
TIMEOUT = timedelta(seconds=600)
EXACT, DISTANCES, INEXACT = "Lookaround", "Lookaround(measure=True)", "Lookaround(exact=False)"
REFERENCE, BOUND = "PeriodicModelAverager", "bare all_reduce"
SHARED = BUCKET_BYTES / 1e6
NOTES = f"""\
Time of the slowest rank, each repeat started by a barrier; the competitors take turns in every repeat, after
{WARM_UP} calls of each. {EXACT}: average() with its finite check, over parameters and running statistics;
measure=True adds the replicas' distances to their mean, as the trainer does. {REFERENCE} (PMA):
PyTorch's, over parameters; its first call moves them into a flat buffer that stays resident and is not counted.
{BOUND}: of one flat fp32 buffer of as many elements, a bound that packs nothing. Extra: the most that any
rank needed beyond what was resident before the call. Ranks of one machine that average on its CPU also keep
{SHARED:.0f} MB for each replica and for the mean in memory that they share. x PMA: ratio of the medians, and of the
extra memory."""


def report(options: argparse.Namespace) -> Figures:
    """Measures the average step, prints the table and returns its figures.

    Args:
        options: `model`, `ranks` and `repeats`, as the command line has them.

    Raises:
        UserError: an unknown model; fewer than 1 rank or repeat.
    """
    machine.at_least({"--ranks": options.ranks, "--repeats": options.repeats}, 1)
    console, progress = Console(), Console(stderr=True, highlight=False)
    model = create_model(ModelConfig(name=options.model), CLASSES)
    elements = sum(parameter.numel() for parameter in model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    del model
    gpus = options.ranks if _backend(options.ranks) == "nccl" else 0
    setting = machine.describe_machine(_backend(options.ranks), str(options.ranks), 1, gpus)
    progress.print(f"average: {options.ranks} ranks start, each with {options.model} ...", markup=False)
    with machine.ended_tidily():
        measured = _measure(options.model, options.ranks, options.repeats)
    figures = {
        "machine": setting,
        "model": options.model,
        "parameters": elements,
        "parameter_bytes": size,
        "repeats": options.repeats,
        "rows": {name: _row(name, measured) for name in measured},
    }
    _print(figures, console)
    return figures


def _row(name: str, measured: Figures) -> Figures:
    own, reference = measured[name], measured[REFERENCE]
    milliseconds = machine.spread(own["milliseconds"])
    comparable = own["extra_bytes"] is not None and reference["extra_bytes"]
    return {
        "milliseconds": milliseconds,
        "time_ratio": milliseconds["median"] / machine.spread(reference["milliseconds"])["median"],
        "extra_bytes": own["extra_bytes"],
        "memory_ratio": own["extra_bytes"] / reference["extra_bytes"] if comparable else None,
    }


def _print(figures: Figures, console: Console) -> None:
    machine.print_machine(figures["machine"], console)
    title = f"Average step of {figures['model']}: {figures['parameters'] / 1e6:.2f} M parameters, "
    title += f"{figures['parameter_bytes'] / 1e6:.1f} MB; n = {figures['repeats']}"
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("ms", no_wrap=True)
    for heading in ("min", "median", "max", "x PMA", "extra MB", "x PMA"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in figures["rows"].items():
        extra = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        ratio = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        table.add_row(name, *machine.spread_cells(row["milliseconds"], 2), f"{row['time_ratio']:.2f}", extra, ratio)
    console.print(table)
    console.print(NOTES, markup=False, highlight=False, soft_wrap=True)


def _backend(ranks: int) -> str:
    """NCCL needs a GPU for each rank."""
    return "nccl" if dist.is_nccl_available() and torch.cuda.device_count() >= ranks else "gloo"


def _measure(model: str, ranks: int, repeats: int) -> Figures:
    """Starts the ranks, and ends them whatever happens."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a port of the system's choice
    environment, interrupt = dict(os.environ), signal.getsignal(signal.SIGINT)
    try:
        os.environ.update(machine.rank_environment(threads=1))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ranks inherit it: Ctrl-C is this process's to handle
        context = mp.spawn(_rank, (ranks, store.port, model, repeats), ranks, join=False, daemon=True)
    finally:
        signal.signal(signal.SIGINT, interrupt)
        os.environ.clear()
        os.environ.update(environment)
    assert context is not None
    try:
        while not context.join():
            pass
    finally:
        for process in context.processes:
            process.kill()
            process.join()
        for file in context.error_files:  # where a rank that fails leaves its traceback
            Path(file).unlink(missing_ok=True)
    return json.loads(store.get("figures"))


def _rank(rank: int, ranks: int, port: int, name: str, repeats: int) -> None:
    """One rank of the measurement; rank 0 leaves the figures of all in the store."""
    machine.die_with_parent()
    torch.set_num_threads(1)
    backend = _backend(ranks)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    bound = device if device.type == "cuda" else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=TIMEOUT, device_id=bound)
    model = create_model(ModelConfig(name=name), CLASSES).to(device)
    competitors = _competitors(model, device)
    for _ in range(WARM_UP):
        for call in competitors.values():
            call()

    names = list(competitors)
    milliseconds: dict[str, list[float]] = {each: [] for each in names}
    for repeat in range(repeats):
        first = repeat % len(names)  # so that no competitor always follows the same one
        for each in names[first:] + names[:first]:
            milliseconds[each].append(_milliseconds(competitors[each], device))
    extra: dict[str, list[int | None]] = {each: [] for each in names}
    for _ in range(min(repeats, MEMORY_REPEATS)):
        for each in names:
            dist.barrier()
            extra[each].append(memory.extra_bytes(competitors[each], device))

    everyone: list[tuple[dict[str, list[float]], dict[str, list[int | None]]]] = [(milliseconds, extra)] * ranks
    dist.all_gather_object(everyone, (milliseconds, extra))
    if rank == 0:
        figures = {}
        for each in names:
            peaks = [peak for _, theirs in everyone for peak in theirs[each]]
            known = [peak for peak in peaks if peak is not None]
            figures[each] = {
                "milliseconds": [max(times) for times in zip(*(theirs[each] for theirs, _ in everyone), strict=True)],
                "extra_bytes": max(known) if len(known) == len(peaks) else None,
            }
        store.set("figures", json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def _competitors(model: nn.Module, device: torch.device) -> dict[str, Callable[[], object]]:
    """Calls that average what every rank has of the model."""
    theirs = copy.deepcopy(model)  # PeriodicModelAverager replaces each parameter's memory
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it passes over parameters without one
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="When period is 1")
        averager = PeriodicModelAverager(period=1, warmup_steps=0)
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), device=device)
    return {
        EXACT: Lookaround(model).average,
        DISTANCES: Lookaround(model, measure=True).average,
        INEXACT: Lookaround(model, exact=False).average,
        REFERENCE: lambda: averager.average_parameters(theirs.parameters()),
        BOUND: functools.partial(dist.all_reduce, flat),
    }


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    dist.barrier()
    finish()
    start = time.perf_counter()
    call()
    finish()
    return 1000 * (time.perf_counter() - start)
