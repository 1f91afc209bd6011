"""`bench round`: what an average step adds to a round of training steps, and how much of it a delay overlaps."""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.bench import figures as machine
from lookaround_ddp.bench.figures import Figures
from lookaround_ddp.bench.ranks import describe_ranks, job_size, milliseconds_in_turn, on_ranks, slowest
from lookaround_ddp.config import ModelConfig
from lookaround_ddp.errors import UserError, is_main_rank
from lookaround_ddp.models import create_model

CIFAR_CLASSES = 100


NEVER, WAITED = "never averaged", "waited for"


ROUND_NOTES = """\
A round is an average step and the k training steps that follow, on random images; with --wait-ms, steps that only wait,
and leave the cores free. Time of the slowest rank; the competitors take turns. Average: what a round takes beyond the
same steps without an average, median of the differences within each repeat. A delay is another algorithm: the mean
comes so many steps later, as a correction, and is exchanged meanwhile. Overlapped: 1 - average / that of
"waited for"."""


def measure_and_print_rounds(options: argparse.Namespace) -> Figures:
    """Measures rounds, prints the table and returns its figures.

    Args:
        options: `round_model`, `size`, `ranks`, `repeats`, `round_batch_size`, `wait_ms` and `k`, as the command line
            has them.

    Raises:
        UserError: an unknown model; a number that is too small.
    """
    machine.at_least({"--ranks": options.ranks, "--repeats": options.repeats, "--k": options.k}, 1)
    if options.wait_ms is not None and options.wait_ms <= 0:
        raise UserError(f"--wait-ms is {options.wait_ms:g}: give the milliseconds of a step, more than 0")
    ranks = job_size(options.ranks)
    create_model(ModelConfig(name=options.round_model), CIFAR_CLASSES)  # a name that is unknown, before ranks start
    setting = describe_ranks(ranks)
    if is_main_rank():
        machine.print_progress(f"round: {ranks} ranks measure, each with {options.round_model} ...")
    workload = (
        options.round_model,
        options.size,
        options.round_batch_size,
        options.k,
        options.repeats,
        options.wait_ms,
    )
    times = slowest(on_ranks(_measured_rounds, ranks, *workload))
    costs = {name: added(values, times[NEVER]) for name, values in times.items()}
    rows = {}
    for name, values in times.items():
        rows[name] = {
            "milliseconds": machine.spread(values),
            "average": None if name == NEVER else costs[name],
            "overlapped": None if name == NEVER else 1 - costs[name] / costs[WAITED],
        }
    names = ("model", "size", "batch_size", "k", "repeats", "wait_ms")
    figures = {"machine": setting, **dict(zip(names, workload, strict=True)), "rows": rows}
    if is_main_rank():
        _print_rounds(figures)
    return figures


def added(values: Sequence[float], to: Sequence[float]) -> float:
    """Returns the median extra time of a repeat, on which a slow spell of the machine has little effect."""
    return statistics.median(value - reference for value, reference in zip(values, to, strict=True))


def _measured_rounds(
    device: torch.device, name: str, size: int, batch_size: int, k: int, repeats: int, wait: float | None
) -> dict[str, list[float]]:
    """Measures, on one rank, milliseconds of a round of each competitor."""
    torch.manual_seed(0)
    model = create_model(ModelConfig(name=name), CIFAR_CLASSES).to(device)
    images = torch.randn(batch_size, 3, size, size, device=device)
    labels = torch.randint(CIFAR_CLASSES, (batch_size,), device=device)

    def competitor(period: int | None, **options: Any) -> Callable[[], None]:
        own = copy.deepcopy(model)  # each moves its model into its storage
        around = Lookaround(own, period, **options)
        if wait is not None:
            return functools.partial(_round, around, functools.partial(time.sleep, wait / 1000), k)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-3, momentum=0.9)
        step = functools.partial(_training_step, own, optimizer, images, labels)
        return functools.partial(_round, around, step, k)

    competitors = {NEVER: competitor(None), WAITED: competitor(k)}
    for delay in sorted({1, k - 1}):
        if 0 < delay < k:
            competitors[f"delay {delay}"] = competitor(k, delay=delay)
    for call in competitors.values():  # connections, and the optimizer's state
        call()
    return milliseconds_in_turn(competitors, repeats, device)


def _training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor
) -> None:
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def _round(around: Lookaround, step: Callable[[], None], k: int) -> None:
    """Takes an average step, and the k steps that it may overlap."""
    around.steps = k - 1
    around.step()
    for number in range(1, k + 1):
        step()
        if number < k:
            around.step()


def _print_rounds(figures: Figures) -> None:
    machine.print_machine(figures["machine"])
    what = f"{figures['batch_size']} images of {figures['size']} px a step"
    if figures["wait_ms"] is not None:
        what = f"steps that wait for {figures['wait_ms']:g} ms"
    print(f"Rounds of {figures['k']} steps of {figures['model']}, {what}; n = {figures['repeats']}")
    table = []
    for name, row in figures["rows"].items():
        average = "-" if row["average"] is None else f"{row['average']:.0f}"
        overlapped = "-" if row["overlapped"] is None else f"{100 * row['overlapped']:.0f} %"
        table.append([name, *machine.spread_cells(row["milliseconds"], 0), average, overlapped])
    machine.print_figures(("ms", "min", "median", "max", "average", "overlapped"), table)
    print(ROUND_NOTES)
