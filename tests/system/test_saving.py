"""A checkpoint is written while the training goes on, and whole when all ranks have written; a kill loses no bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lookaround_ddp.checkpoint.checkpoints import Checkpoints
from tests.support.runs import TINY, Job, train, wait_for_files, weights

# A checkpoint after every second of 10 iterations; the ranks vote after each
CONFIG = (*TINY, "checkpoint.every=0.4", "checkpoint.keep=3", "checkpoint.grace_seconds=0.001", "record.every=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(out, *CONFIG)
    return out


def die_after(iterations: int, late: int, rank: int) -> None:
    """Kills rank 1 when it begins the next iteration; at each vote one rank says that it still writes."""
    from lookaround_ddp.checkpoint.writer import Writer
    from lookaround_ddp.training.replica import Replica

    wait_for_files()
    if rank == late:
        Writer.done = property(lambda self: False)
    step = Replica.step

    def fatal(self: Replica, batches: object, number: int, rate: float) -> object:
        if rank == 1 and number == iterations:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batches, number, rate)

    Replica.step = fatal


NOBODY = -1


@pytest.mark.parametrize(("iterations", "late", "whole"), [(4, NOBODY, 2), (5, NOBODY, 4), (5, 1, 2), (6, 1, 4)])
def test_it_is_whole_at_the_vote_after_it_or_with_the_next(
    undisturbed: Path, tmp_path: Path, iterations: int, late: int, whole: int
) -> None:
    """The vote after 5 finds that all have written 4, unless one is late; then it is whole when 6 begins."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=3, prepare=partial(die_after, iterations, late))
    assert job.wait()[1] == -signal.SIGKILL
    assert (out / "LATEST").read_text() == f"{whole}\n"
    said = train(out, *CONFIG, ranks=2)
    assert f"resumed after iteration {whole}" in said
    assert weights(out) == weights(undisturbed)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["10", "6", "8"]


def die_in_save(call: int, rank: int) -> None:
    """Makes the process kill itself at the n-th call to the file system that writing checkpoint 6 makes.

    The main thread makes none while the other one writes.
    """
    from lookaround_ddp.checkpoint import checkpoints as checkpoint

    wait_for_files()
    begin, finish = checkpoint.Checkpoints.begin, checkpoint.Checkpoints.finish
    count, saving = 0, False

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal count
            count += saving
            if saving and count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    def begun(self: Checkpoints, iteration: int, *args: object) -> None:
        nonlocal saving
        saving = iteration == 6
        begin(self, iteration, *args)

    def finished(self: Checkpoints) -> None:
        nonlocal saving
        finish(self)
        if saving and self.under_way is None and (self.folder / "6").exists():
            saving = False
            print(f"calls to the file system: {count}")

    for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree"), (Path, "open")):
        setattr(owner, name, counted(getattr(owner, name)))
    checkpoint.Checkpoints.begin, checkpoint.Checkpoints.finish = begun, finished


def test_killed_while_a_checkpoint_is_written(undisturbed: Path, tmp_path: Path) -> None:
    """At every third call to the file system meanwhile: afterwards 4 or 6 is whole, and nothing is lost."""
    job = Job("train", f"out={tmp_path}/counted", *CONFIG, prepare=partial(die_in_save, 0))
    assert job.wait() == [0]
    calls = int(job.said().partition("calls to the file system: ")[2].split()[0])
    assert calls > 15
    resumed = []
    for call in range(1, calls + 1, 3):
        out = tmp_path / str(call)
        assert Job("train", f"out={out}", *CONFIG, prepare=partial(die_in_save, call)).wait() == [-signal.SIGKILL]
        said = train(out, *CONFIG)
        assert "damaged" not in said
        resumed.append(int(said.partition("resumed after iteration ")[2].split()[0]))
        assert weights(out) == weights(undisturbed)
        assert not list(out.rglob(".writing-*"))
    assert set(resumed) == {4, 6}
    assert resumed == sorted(resumed)


def lose(what: str, rank: int) -> None:
    """Removes something of the run's folder, or all of it, when iteration 6 begins."""
    from lookaround_ddp.training.replica import Replica

    step = Replica.step

    def losing(self: Replica, batches: object, number: int, rate: float) -> object:
        if number == 5 and rank == 0 and self.number == 0:
            path = Path(self.config.out) / what
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return step(self, batches, number, rate)

    Replica.step = losing


@pytest.mark.parametrize(
    ("what", "lines", "grace"), [(".", 4, 0.001), (".", 4, 20), ("config.yaml", 10, 0.001), ("metrics.jsonl", 4, 0.001)]
)
def test_what_is_removed_while_a_run_trains_is_made_again(
    undisturbed: Path, tmp_path: Path, what: str, lines: int, grace: float
) -> None:
    """The checkpoint after iteration 6 finds it; the record has a line for each iteration from 7 on, or all of them.

    With a grace of 20 s no rank votes in so short a run: the checkpoint of iteration 4 is still under way.
    """
    out = tmp_path / "run"
    values = (*CONFIG, f"checkpoint.grace_seconds={grace}")
    job = Job("train", f"out={out}", *values, ranks=2, prepare=partial(lose, what))
    assert job.wait() == [0, 0], job.said()
    assert ("was removed while a checkpoint was written into it" in job.said(0)) == (grace == 20)
    assert "was removed while the run trained: made again" in job.said(0)
    assert ("without the lines so far" in job.said(0)) == (what != "config.yaml")
    assert weights(out) == weights(undisturbed)
    expected = (undisturbed / "config.yaml").read_text().replace(str(undisturbed), str(out))
    assert (out / "config.yaml").read_text() == expected.replace("seconds: 0.001", f"seconds: {float(grace)}")
    record = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in record if "loss" in line]) == lines
    assert "has finished" in train(out, *CONFIG)


def test_a_refused_config_leaves_no_folder(tmp_path: Path) -> None:
    train(tmp_path / "run", *CONFIG, "model.name=timm:nix", expect=2)
    assert list(tmp_path.iterdir()) == []


def leave_while_the_folder_goes(rank: int) -> None:
    """Sends rank 0 SIGTERM in iteration 6; removes the run's checkpoints when that one's has begun."""
    from lookaround_ddp.training.replica import Replica

    step, begin = Replica.step, Checkpoints.begin

    def leaving(self: Replica, batches: object, number: int, rate: float) -> object:
        if number == 5 and rank == 0 and self.number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches, number, rate)

    def losing(self: Checkpoints, iteration: int, *arguments: object) -> None:
        begin(self, iteration, *arguments)
        if iteration == 6 and rank == 0:
            shutil.rmtree(self.folder)

    Replica.step, Checkpoints.begin = leaving, losing


def test_nothing_is_called_saved_that_was_removed_meanwhile(tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=2, prepare=leave_while_the_folder_goes)
    assert job.wait() == [2, 2], job.said()
    assert f"error: SIGTERM: left without saving, since {out} was removed meanwhile" in job.said(0)
    assert "saved after" not in job.said()
    assert not (out / "PREEMPTED").exists()
