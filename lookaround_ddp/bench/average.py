"""`bench average`: what the average step costs, beside PyTorch's own averager and a bare all-reduce."""

from __future__ import annotations

import argparse
import copy
import ctypes
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.bench import cost
from lookaround_ddp.bench import figures as machine
from lookaround_ddp.bench.figures import Figures
from lookaround_ddp.bench.ranks import describe_ranks, job_size, milliseconds_in_turn, on_ranks, slowest
from lookaround_ddp.config import ModelConfig
from lookaround_ddp.errors import is_main_rank
from lookaround_ddp.models import create_model

IMAGENET_CLASSES = 1000


WARM_UP_CALLS = 3  # the first call opens connections, and moves PeriodicModelAverager's parameters into its buffer


MEMORY_REPEATS = 3


EXACT, DISTANCES, INEXACT = "Lookaround", "Lookaround(measure=True)", "Lookaround(exact=False)"


REFERENCE, BOUND = "PeriodicModelAverager", "bare all_reduce"


AVERAGE_NOTES = f"""\
Time of the slowest rank, each repeat started by a barrier; the competitors take turns in every repeat, after
{WARM_UP_CALLS} calls of each. {EXACT}: average() with its finite check, over parameters and running statistics;
measure=True adds the replicas' distances to their mean, as the trainer does. {REFERENCE} (PMA):
PyTorch's, over parameters; its first call moves them into a flat buffer that stays resident and is not counted.
{BOUND}: of one flat fp32 buffer of as many elements, a bound that packs nothing. Extra: the most that any
rank needed beyond what was resident before the call. Ranks of one machine that average on its CPU have their weights
in memory that they share, in place of their own. x PMA: ratio of the medians, and of the extra memory."""


def measure_and_print_average(options: argparse.Namespace) -> Figures:
    """Measures the average step, prints the table and returns its figures.

    Args:
        options: `model`, `ranks`, `repeats`, `step_ms` and `epoch_steps`, as the command line has them.

    Raises:
        UserError: an unknown model; fewer than 1 rank or repeat.
    """
    machine.at_least({"--ranks": options.ranks, "--repeats": options.repeats}, 1)
    model = create_model(ModelConfig(name=options.model), IMAGENET_CLASSES)
    elements = sum(parameter.numel() for parameter in model.parameters())
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    del model
    ranks = job_size(options.ranks)
    setting = describe_ranks(ranks)
    if is_main_rank():
        machine.print_progress(f"average: {ranks} ranks measure, each with {options.model} ...")
    measured, sizes = _measure_on_ranks(options.model, ranks, options.repeats)
    figures = {
        "machine": setting,
        "model": options.model,
        "parameters": elements,
        "parameter_bytes": size,
        "repeats": options.repeats,
        "rows": {name: _average_row(name, measured) for name in measured},
        "cost": cost.cost_figures(sizes, ranks, size) if ranks > 1 else None,
    }
    if is_main_rank():
        _print_average(figures)
        if ranks > 1:
            step = None if options.step_ms is None else options.step_ms / 1000
            cost.print_cost(figures["cost"], step, options.epoch_steps)
    return figures


def _average_row(name: str, measured: Figures) -> Figures:
    own, reference = measured[name], measured[REFERENCE]
    milliseconds = machine.spread(own["milliseconds"])
    comparable = own["extra_bytes"] is not None and reference["extra_bytes"]
    return {
        "milliseconds": milliseconds,
        "time_ratio": milliseconds["median"] / machine.spread(reference["milliseconds"])["median"],
        "extra_bytes": own["extra_bytes"],
        "memory_ratio": own["extra_bytes"] / reference["extra_bytes"] if comparable else None,
    }


def _print_average(figures: Figures) -> None:
    machine.print_machine(figures["machine"])
    title = f"Average step of {figures['model']}: {figures['parameters'] / 1e6:.2f} M parameters, "
    title += f"{figures['parameter_bytes'] / 1e6:.1f} MB; n = {figures['repeats']}"
    print(title)
    table = []
    for name, row in figures["rows"].items():
        extra = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.1f}"
        ratio = "-" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
        times = machine.spread_cells(row["milliseconds"], 2)
        table.append([name, *times, f"{row['time_ratio']:.2f}", extra, ratio])
    machine.print_figures(("ms", "min", "median", "max", "x PMA", "extra MB", "x PMA"), table)
    print(AVERAGE_NOTES)


def _measure_on_ranks(model: str, ranks: int, repeats: int) -> tuple[Figures, Figures]:
    """Returns milliseconds and extra bytes by competitor, and milliseconds by megabytes."""
    everyone = on_ranks(_measured_on_rank, ranks, model, repeats)
    milliseconds = slowest([times for times, _, _ in everyone])
    figures = {}
    for name in milliseconds:
        peaks = [peak for _, extra, _ in everyone for peak in extra[name]]
        known = [peak for peak in peaks if peak is not None]
        figures[name] = {
            "milliseconds": milliseconds[name],
            "extra_bytes": max(known) if len(known) == len(peaks) else None,
        }
    return figures, slowest([sizes for _, _, sizes in everyone])


def _measured_on_rank(
    device: torch.device, name: str, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[int | None]], dict[str, list[float]]]:
    """Measures on one rank: milliseconds and extra bytes of each competitor's calls, and milliseconds by megabytes."""
    model = create_model(ModelConfig(name=name), IMAGENET_CLASSES).to(device)
    competitors = _averagers(model, device)
    for _ in range(WARM_UP_CALLS):
        for call in competitors.values():
            call()
    milliseconds = milliseconds_in_turn(competitors, repeats, device)
    extra: dict[str, list[int | None]] = {each: [] for each in competitors}
    for _ in range(min(repeats, MEMORY_REPEATS)):
        for each, call in competitors.items():
            dist.barrier()
            extra[each].append(extra_bytes(call, device))
    return milliseconds, extra, cost.measure_sizes(device, repeats) if dist.get_world_size() > 1 else {}


def _averagers(model: nn.Module, device: torch.device) -> dict[str, Callable[[], object]]:
    """Makes the calls that average the ranks' models, by competitor."""
    theirs = copy.deepcopy(model)  # PeriodicModelAverager replaces each parameter's memory
    for parameter in theirs.parameters():
        parameter.grad = torch.zeros_like(parameter)  # it passes over parameters without one
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="When period is 1")
        averager = PeriodicModelAverager(period=1, warmup_steps=0)
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), device=device)
    return {
        EXACT: Lookaround(model).average,
        DISTANCES: Lookaround(copy.deepcopy(model), measure=True).average,  # each moves its model into its storage
        INEXACT: Lookaround(copy.deepcopy(model), exact=False).average,
        REFERENCE: lambda: averager.average_parameters(theirs.parameters()),
        BOUND: functools.partial(dist.all_reduce, flat),
    }


STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


RESET_PEAK = "5"  # written to clear_refs: VmHWM becomes VmRSS


TOLERANCE = 2**21  # the kernel counts pages per core and sums up lazily, so its figures are off by some 0.5 MB


def extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Returns peak minus resident bytes of this process, or of its GPU, during the call; None if unknown.

    The call is made in any case: it may be a collective, and other ranks wait for it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    resident = _reset_peak()
    call()
    return None if resident is None else max(0, _status("VmHWM") - resident)


def _reset_peak() -> int | None:
    """Restarts the peak from the resident bytes, and returns these; None if the system cannot (not Linux, musl).

    Memory that was freed but is still in malloc's hands would hide what the call needs, so it goes back first.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text(RESET_PEAK)
        resident = _status("VmRSS")
        return resident if abs(_status("VmHWM") - resident) < TOLERANCE else None
    except (OSError, AttributeError, KeyError):
        return None


def _status(key: str) -> int:
    """Returns a field of /proc/self/status in bytes; the file has it in kB."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(fields[key].split()[0]) * 1024
