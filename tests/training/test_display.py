"""The bar on a terminal, and the time that is left: numbers that someone worked out."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from lookaround_ddp.training import display
from lookaround_ddp.training.progress import Stopwatch
from lookaround_ddp.training.rounds import pauses_left
from tests.support.waits import waits


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lookaround_ddp.training.display.time", clock)
    monkeypatch.setattr("lookaround_ddp.training.progress.time", clock)
    return clock


def test_the_bar_moves_from_the_first_iteration(clock: Clock) -> None:
    """1 of 9 iterations takes 2 s: 8 take 16. A line says 30 s, of which 4 are over with the next iteration."""
    bar = display.Display(Console(file=io.StringIO(), width=100), total=10, done=1)
    losses = [torch.tensor(1.5), torch.tensor(2.25)]
    clock.now = 102
    bar.advance(2, 0.4, 0.1, losses)
    task = bar.progress.tasks[0]
    assert (task.completed, task.description) == (2, "epoch 0.40 | lr 0.1 | loss 1.500 2.250")
    assert task.fields["eta"] == "ETA 0:16"
    bar.line({"loss": [0.5, 0.25, 1.5, 0.75], "images_per_second": 99.6, "eta": 30.0})
    clock.now = 106
    bar.advance(3, 0.6, 0.05, losses)
    assert task.description == "epoch 0.60 | lr 0.05 | loss 0.750 (mean of 4) | 100 images/s"
    assert task.fields["eta"] == "ETA 0:26"
    bar.stop()
    assert task.fields["eta"] == "0:06 in all"


def test_a_gpu_is_not_waited_for() -> None:
    bar = display.Display(Console(file=io.StringIO(), width=100), total=10, done=0)
    with waits() as found:
        bar.advance(1, 0.1, 0.1, [torch.ones((), device="meta")])
    bar.stop()
    assert found == []


def test_what_pauses_are_left(clock: Clock) -> None:
    """A run of 22 iterations, 5 in an epoch, resumed after 5; at iteration 13.

    Evaluations every 5 iterations: one after 10 took 3 s, those after 15, 20 and 22 are left, 9 s. Checkpoints every
    10: after 10 one took 4 s (in two pieces), after 20 and 22 are left, 8 s. Of SWAD's validations 7 iterations (to
    12) took 0.7 s: 10 are left, 1 s.
    """
    watch = Stopwatch(elapsed=50.0, total=60.0)
    for what, seconds in (("evaluating", 3.0), ("saving", 1.0), ("saving", 3.0), ("validating segments", 0.7)):
        clock.now += 1
        with watch.paused(what):
            clock.now += seconds
    assert (watch.seconds(), watch.total()) == (pytest.approx(54), pytest.approx(71.7))
    config = SimpleNamespace(evaluate=SimpleNamespace(every=1), checkpoint=SimpleNamespace(every=2))
    run: Any = SimpleNamespace(config=config, watch=watch, first=5, iteration=13, total=22, per_epoch=5)
    assert pauses_left(run) == pytest.approx(9 + 8 + 1)
    run.first = run.iteration = 21
    assert pauses_left(run) >= 0
