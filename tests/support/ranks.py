"""Runs a function on several ranks, each a process of its own with gloo between them, and returns the results."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import FORKS


def run(worker: Callable[..., Any], ranks: int, *args: Any, timeout: float = TEST_TIMEOUT) -> list[Any]:
    """Calls worker(rank, ranks, *args) on each rank; returns what the ranks returned, in rank order.

    `worker` is a function of a module, since the forked processes import it; it returns tensors, numbers,
    strings, None, and lists and dicts of these. No process and no file is left, whatever happens.

    Raises:
        RuntimeError: a rank raised or died; with its traceback, the first to fail first.
        TimeoutError: a rank still ran after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder, started = Path(name), []
        try:
            for rank in range(ranks):
                process = FORKS.Process(target=_rank, args=(worker, rank, ranks, folder, timeout, args))
                process.start()
                started.append(process)
            _wait(started, folder, timeout)
        finally:
            for process in started:
                process.kill()
                process.join()
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def _rank(
    worker: Callable[..., Any], rank: int, ranks: int, folder: Path, timeout: float, args: tuple[Any, ...]
) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=timeout / 2),  # a collective that hangs is then a traceback, not a kill
        )
        torch.save(worker(rank, ranks, *args), folder / f"{rank}.pt")
        if dist.is_initialized():  # the worker may have ended it
            dist.barrier()  # a rank that left would break its neighbours' connections
            dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(f"rank {rank} of {ranks}:\n{traceback.format_exc()}")
        sys.exit(1)


def _wait(processes: list[BaseProcess], folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    running = dict(enumerate(processes))
    while running:
        ready = wait([process.sentinel for process in running.values()], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(running)} still ran after {timeout} s")
        for rank in [rank for rank, process in running.items() if process.sentinel in ready]:
            process = running.pop(rank)
            process.join()
            if process.exitcode != 0:
                # The first failure is the cause; what other ranks say of their lost connections follows.
                errors = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
                texts = [path.read_text() for path in errors]
                raise RuntimeError("\n".join(texts) or f"rank {rank} died with exit code {process.exitcode}")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal dtype, shape and bytes: unlike with ==, 0.0 is not -0.0."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bytes(one), _bytes(other))


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Two state dicts with the same names and the same bits."""
    return one.keys() == other.keys() and all(same_bits(value, other[name]) for name, value in one.items())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
