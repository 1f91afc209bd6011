"""What stops a run in the middle: a replica that is not finite, a rank that hangs."""

from __future__ import annotations

import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import TINY, Job


def poison(only: int, iteration: int, what: str, rank: int) -> None:
    """Makes a replica's weights, or its loss, infinite after an iteration."""
    import torch

    from lookaround_ddp.training.replica import Replica

    step = Replica.step

    def poisoned(self: Replica, batches: object, number: int, rate: float) -> torch.Tensor:
        loss = step(self, batches, number, rate)
        if self.number == only and number == iteration - 1:
            if what == "loss":
                return loss * float("nan")
            next(self.model.parameters()).data[0] = float("inf")
        return loss

    Replica.step = poisoned


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights", "replica 2 not finite after iteration 6"),
        ("loss", "the loss of replica 2 is not finite at iteration 6"),
    ],
)
def test_a_replica_that_is_not_finite_stops_the_run(tmp_path: Path, what: str, message: str) -> None:
    out = tmp_path / "run"
    arguments = ["train", f"out={out}", *TINY, "checkpoint.every=0.4"]
    job = Job(*arguments, ranks=3, prepare=partial(poison, 2, 6, what))
    assert job.wait() == [1, 1, 1]
    assert message in job.said(0)
    assert "Traceback" not in job.said()
    assert (out / "LATEST").read_text() == "4\n"
    assert not (out / "checkpoints" / "6").exists()


def hang(only: int, iteration: int, rank: int) -> None:
    """Makes a rank stop for good, without dying, when it begins this iteration."""
    from lookaround_ddp.training.replica import Replica

    step = Replica.step

    def stopping(self: Replica, batches: object, number: int, rate: float) -> object:
        if rank == only and number == iteration:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, batches, number, rate)

    Replica.step = stopping


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, "timeout=5", ranks=3, prepare=partial(hang, 1, 4))
    for process in (job.processes[0], job.processes[2]):
        process.join(TEST_TIMEOUT)
        assert process.exitcode not in (None, 0)
    job.kill(1)
    assert job.wait()[1] == -signal.SIGKILL
    assert re.search(r"timed out|Timed out|timeout", job.said())
