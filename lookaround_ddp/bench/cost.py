"""What the average step would cost elsewhere: a line through a few sizes, and the ring model for other ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.bench.figures import Figures, print_figures
from lookaround_ddp.bench.ranks import milliseconds_in_turn

MEGABYTES = (1, 4, 16, 64)


RANKS = (8, 32, 128, 1024)


ROUNDS = (1, 5, 10, 50)


COST_NOTES = """\
Fitted: seconds = latency + bytes / bandwidth, through the medians of the exact average of 1 to 64 MB. For W ranks,
of which W0 were measured, the ring model: latency times (W - 1) / (W0 - 1), and bytes / bandwidth times (1 - 1/W) /
(1 - 1/W0). It takes each rank to have a link of its own like the measured ones: ranks that share one machine's memory
say nothing about a network. The columns of k: of the time that a round takes, average / (average + k steps)."""


@dataclass(frozen=True)
class Line:
    """Seconds that an average step of some bytes takes on so many ranks."""

    latency: float  # s
    bandwidth: float  # bytes/s
    ranks: int

    def seconds(self, size: float, ranks: int) -> float:
        """Returns the seconds of `size` bytes on so many ranks by the ring model; 0 for one rank."""
        hops = (ranks - 1) / (self.ranks - 1)
        volume = (1 - 1 / ranks) / (1 - 1 / self.ranks)
        return self.latency * hops + size / self.bandwidth * volume


def fit_line(sizes: Sequence[float], seconds: Sequence[float], ranks: int) -> Line:
    """Fits the line with the least sum of squared relative errors; neither of its terms is negative."""
    x, y = np.array(sizes, dtype=float), np.array(seconds, dtype=float)
    scale = x.max()
    (latency, slope), _ = nnls(np.stack([1 / y, x / scale / y], axis=1), np.ones_like(y))
    return Line(float(latency), float(scale / slope) if slope > 0 else float("inf"), ranks)


def measure_sizes(device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Measures, on one rank, milliseconds of average steps of each size, by megabytes."""
    competitors = {}
    for megabytes in MEGABYTES:
        module = nn.Module()
        module.weight = nn.Parameter(torch.zeros(megabytes * 1_000_000 // 4, device=device))
        competitors[str(megabytes)] = partial(_average, Lookaround(module))
    for call in competitors.values():
        call()
    return milliseconds_in_turn(competitors, repeats, device)


def _average(around: Lookaround) -> None:
    around.average()


def cost_figures(times: Mapping[str, Sequence[float]], ranks: int, size: int) -> Figures:
    """Returns the fitted line and the seconds of an average step for several numbers of ranks.

    Args:
        times: milliseconds by megabytes.
        size: bytes of the parameters that are averaged.
    """
    sizes = [1e6 * int(megabytes) for megabytes in times]
    medians = [float(np.median(values)) / 1000 for values in times.values()]
    line = fit_line(sizes, medians, ranks)
    return {
        "bytes": sizes,
        "seconds": medians,
        "fitted": [line.seconds(each, ranks) for each in sizes],
        "latency": line.latency,
        "bandwidth": line.bandwidth,
        "average": {str(number): line.seconds(size, number) for number in (ranks, *RANKS)},
    }


def print_cost(found: Figures, step: float | None, epoch: int) -> None:
    """Prints the fitted line, and a table of the average step's time and its share of a round.

    Args:
        step: seconds of a training step; None leaves the shares out.
        epoch: iterations in an epoch.
    """
    parts = [f"{size / 1e6:.0f} MB {1000 * t:.1f} ms" for size, t in zip(found["bytes"], found["seconds"], strict=True)]
    rate = f"{found['bandwidth'] / 1e6:.0f} MB/s" if found["bandwidth"] < float("inf") else "no limit"
    print(f"{', '.join(parts)}: latency {1000 * found['latency']:.2f} ms, bandwidth {rate}")
    rounds = {f"k = {k}": k for k in ROUNDS} | {f"epoch ({epoch})": epoch}
    table = []
    for ranks, seconds in found["average"].items():
        shares = [] if step is None else [seconds / (seconds + k * step) for k in rounds.values()]
        table.append([ranks, f"{1000 * seconds:.1f}", *(f"{100 * share:.1f} %" for share in shares)])
    print_figures(["ranks", "average, ms", *(rounds if step is not None else ())], table)
    print(
        COST_NOTES
        if step is not None
        else COST_NOTES.partition(" The columns")[0] + " --step-ms MS adds what a round pays."
    )
