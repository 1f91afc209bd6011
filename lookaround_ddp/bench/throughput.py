"""How many images a second arrive in the process that would train on them, when it does nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, islice
from typing import Any

import torch
from torch.utils import data

from lookaround_ddp.data import load

WARM_UP_BATCHES = 2  # batches, beside those that workers have made ahead


LEAST_SECONDS = 0.3  # the least time for which a figure is measured


Competitors = dict[str, Callable[[], float]]  # name -> images/s, measured once


def processes_name(workers: int) -> str:
    """Names a competitor by its number of worker processes."""
    return f"workers: {workers} process{'es' * (workers > 1)}"


def images_per_second(batches: data.Dataset[Any], batch_size: int, workers: int) -> float:
    """Measures images per second, over batches that no worker began before the clock started."""
    ahead = 2 * workers + WARM_UP_BATCHES  # a loader asks each of its workers for two
    arriving: Iterator[object] = load(batches, range(10**6), workers, torch.device("cpu"))
    with closing(arriving):  # type: ignore[type-var]  # load is a generator: closing it ends the workers
        for _ in islice(arriving, ahead):
            pass
        _finish_run()
        start = time.perf_counter()
        for number in count(1):
            next(arriving)
            if time.perf_counter() - start >= LEAST_SECONDS and number >= ahead:
                break
        _finish_run()
        return number * batch_size / (time.perf_counter() - start)


def _finish_run() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
