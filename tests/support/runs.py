"""Starts the real command line as the ranks of a job, and looks at what it left.

`Job` forks its ranks from a server that has imported the package once: a rank is up in a fraction of a
second instead of ten. `torchrun` starts the real launcher, where that is what a test is about.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.limits import TEST_TIMEOUT

ROOT = Path(__file__).parents[2]
EVERY = -1  # all ranks
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        # commands import these only when they are called: each rank would do so for itself
        *("torchvision", "timm.optim", "matplotlib.figure", "matplotlib.backends.backend_agg"),
        *(f"lookaround_ddp.{name}" for name in ("cli.commands", "training", "evaluation", "report")),
        *(f"lookaround_ddp.analysis.{name}" for name in ("diversity", "plane", "sharpness", "trajectory")),
        *("tests.support.exchanges", "tests.support.trainings", "tests.support.warm"),
    ]
)

TINY = (  # 2 epochs of 5 iterations, about a second
    "data.train_images=80",
    "data.batch_size=16",
    "epochs=2",
    "average.k=3",
    "model.width=4",
    "evaluate.every=2",
)


class Job:
    """`python -m lookaround_ddp ARGUMENTS` on `ranks` processes, without a launcher.

    Args:
        prepare: called in each rank, with its number, before the command.
    """

    def __init__(self, *arguments: str, ranks: int = 1, prepare: Callable[[int], None] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="job-"))
        weakref.finalize(self, shutil.rmtree, self.folder)
        port = free_port()
        self.processes = [
            FORKS.Process(target=_rank, args=(rank, ranks, port, self.folder, arguments, prepare))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def kill(self, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def wait(self, timeout: float = TEST_TIMEOUT) -> list[int | None]:
        """The ranks' exit statuses; a rank that still runs after the timeout is ended, and fails the test."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in hanging:
            self.kill(rank)
            self.processes[rank].join()
        assert not hanging, f"ranks {hanging} hang after {timeout} s:\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def said(self, rank: int | None = None) -> str:
        """What a rank, or all of them in turn, wrote on standard output and standard error."""
        numbers = range(len(self.processes)) if rank is None else [rank]
        return "".join(path.read_text() for number in numbers if (path := self.folder / f"{number}.txt").exists())


def train(out: Path, *overrides: str, ranks: int = 1, expect: int = 0) -> str:
    """Trains into `out`; checks the exit status of every rank; returns what they said."""
    job = Job("train", f"out={out}", *overrides, ranks=ranks)
    codes = job.wait()
    assert codes == [expect] * ranks, job.said()
    return job.said()


def resumes(
    out: Path, *overrides: str, ranks: int = 1, killed_at: int, only: int = EVERY, on: int | None = None
) -> tuple[int, str]:
    """Trains until rank `only` kills itself in iteration `killed_at` (counted from 0), then gives the command again.

    Checks that no rank went on alone, and that the second training ends well.

    Args:
        on: the ranks of the second training, by default those of the first.

    Returns:
        The iteration that it went on after, 0 if from the start, and what it said.
    """
    job = Job("train", f"out={out}", *overrides, ranks=ranks, prepare=partial(die_at, killed_at, only))
    codes = job.wait()
    assert codes[max(only, 0)] == -signal.SIGKILL, job.said()
    assert all(code != 0 for code in codes), "a rank went on alone"
    said = train(out, *overrides, ranks=ranks if on is None else on)
    return int((re.findall(r"resumed after iteration (\d+)", said) or ["0"])[0]), said


def torchrun(
    *arguments: str,
    ranks: int,
    options: Sequence[str] = ("--standalone",),
    program: Sequence[str] = ("-m", "lookaround_ddp"),
    cwd: Path | None = None,
) -> str:
    """Runs the program under the real torchrun; returns its output. A hang raises TimeoutExpired."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *options, *program]
    process = subprocess.Popen(
        [*command, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = process.communicate(timeout=TEST_TIMEOUT)
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun ends its ranks
            process.wait(TEST_TIMEOUT)
    assert process.returncode == 0, said
    return said


def die_at(iteration: int, only: int, rank: int, death: signal.Signals = signal.SIGKILL) -> None:
    """Makes the rank signal itself when it begins this iteration (the replicas' own updates, mid-round).

    A checkpoint that was begun before is whole by then.
    """
    from lookaround_ddp.training.replica import Replica

    save_at_once()
    step, sent = Replica.step, False

    def fatal(self: Replica, batches: object, number: int, rate: float) -> object:
        nonlocal sent
        if number == iteration and only in (rank, EVERY) and not sent:
            sent = True  # once, however many replicas the rank hosts
            os.kill(os.getpid(), death)
        return step(self, batches, number, rate)

    Replica.step = fatal


def save_at_once() -> None:
    """Makes the training wait until a checkpoint is whole, so that a test knows which one a kill leaves."""
    from lookaround_ddp.checkpoint import Checkpoints

    begin = Checkpoints.begin

    def whole(self: Checkpoints, *arguments: Any) -> None:
        begin(self, *arguments)
        self.finish()

    Checkpoints.begin = whole


def wait_for_files() -> None:
    """Makes a rank that votes wait for its files of a checkpoint, so that it is whole at the next vote."""
    from lookaround_ddp.checkpoint.writer import Writer

    Writer.done = property(lambda self: self._thread.join() is None)


def weights(out: Path) -> str:
    """The SHA-256 of the run's model.safetensors."""
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(
    rank: int, ranks: int, port: int, folder: Path, arguments: Sequence[str], prepare: Callable[[int], None] | None
) -> None:
    output = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_RANK": f"{rank}", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    if prepare is not None:
        prepare(rank)
    import torch

    from lookaround_ddp.cli import main

    torch.set_num_threads(1)
    main(arguments)
