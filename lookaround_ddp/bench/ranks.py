"""Measured functions on several ranks: processes that are started for it, or the job that torchrun started."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lookaround_ddp._parent import signal_when_parent_ends
from lookaround_ddp.bench import figures as machine
from lookaround_ddp.errors import UserError

TIMEOUT = timedelta(seconds=600)


Worker = Callable[..., Any]  # (device, *arguments) -> JSON-able


def in_job() -> bool:
    """Returns whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def job_size(ranks: int) -> int:
    """Returns how many ranks will measure: the job's, or as many as asked for."""
    return int(os.environ["WORLD_SIZE"]) if in_job() else ranks


def backend(ranks: int) -> str:
    """Names the backend of so many ranks: NCCL if the machine has a GPU for each of its ranks, else gloo."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if in_job() else ranks
    return "nccl" if dist.is_nccl_available() and torch.cuda.device_count() >= local else "gloo"


def describe_ranks(ranks: int) -> machine.Figures:
    gpus = torch.cuda.device_count() if backend(ranks) == "nccl" else 0
    return machine.describe_machine(backend(ranks), str(ranks), 1, min(gpus, ranks))


def refuse_job(name: str) -> None:
    """Raises UserError in a job."""
    if in_job():
        raise UserError(f"bench {name} starts its own processes: run it without torchrun")


def on_ranks(worker: Worker, ranks: int, *arguments: Any) -> list[Any]:
    """Runs the worker on each rank; returns all results in rank order, on every rank of a job.

    Args:
        worker: a function of a module; a process group is set up when it is called.
    """
    if not in_job():
        with machine.ended_tidily():
            return _spawned(worker, ranks, arguments)
    with _group(int(os.environ["RANK"]), job_size(ranks), None) as device:
        return _gathered(worker(device, *arguments))


@contextmanager
def _group(rank: int, ranks: int, store: dist.Store | None) -> Iterator[torch.device]:
    torch.set_num_threads(1)
    name = backend(ranks)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank))) if name == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    bound = device if device.type == "cuda" else None
    dist.init_process_group(name, store=store, rank=rank, world_size=ranks, timeout=TIMEOUT, device_id=bound)
    yield device
    dist.barrier()
    dist.destroy_process_group()


def _gathered(value: Any) -> list[Any]:
    everyone = [value] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def _spawned(worker: Worker, ranks: int, arguments: tuple[Any, ...]) -> list[Any]:
    """Starts the ranks, and ends them whatever happens."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # a port of the system's choice
    environment, interrupt = dict(os.environ), signal.getsignal(signal.SIGINT)
    try:
        os.environ.update(machine.rank_environment(threads=1))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ranks inherit it: Ctrl-C is this process's to handle
        context = mp.spawn(_rank, (ranks, store.port, worker, arguments), ranks, join=False, daemon=True)
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


def _rank(rank: int, ranks: int, port: int, worker: Worker, arguments: tuple[Any, ...]) -> None:
    """Runs one rank of the measurement; rank 0 leaves the results of all in the store."""
    signal_when_parent_ends(signal.SIGKILL)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    with _group(rank, ranks, store) as device:
        everyone = _gathered(worker(device, *arguments))
        if rank == 0:
            store.set("figures", json.dumps(everyone))


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Measures a call that all ranks make, from a barrier to the end of this rank's."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    dist.barrier()
    finish()
    start = time.perf_counter()
    call()
    finish()
    return 1000 * (time.perf_counter() - start)


def milliseconds_in_turn(
    competitors: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Measures milliseconds of every call; the competitors take turns."""
    return machine.in_turn({name: partial(milliseconds, call, device) for name, call in competitors.items()}, repeats)


def slowest(everyone: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Returns, for each repeat, the time of the rank that took longest."""
    return {
        name: [max(times) for times in zip(*(each[name] for each in everyone), strict=True)] for name in everyone[0]
    }
