"""Loader workers: where they come from, that signals leave them alone, and that they end with their rank."""

from __future__ import annotations

import os
import pickle
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from lookaround_ddp.config.schema import AugmentConfig, DataConfig
from lookaround_ddp.data import workers
from lookaround_ddp.data.augmentations import AUGMENTATIONS, MIXES
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.transforms import evaluation_transform, train_pipelines
from tests.support.limits import TEST_TIMEOUT
from tests.support.processes import alive, descendants, kill, loader_workers
from tests.support.runs import TINY, Job, train, weights

CONFIG = (*TINY, "data.pipeline=workers", "data.workers=2", "evaluate.every=1", "evaluate.recalibrate=true")
CONFIG += ("checkpoint.every=99",)


safe = pytest.param(True, marks=pytest.mark.skipif(not workers.FORKS_SAFELY, reason="forks of this Python may hang"))
both = pytest.mark.parametrize("safely", [False, safe])


def forking(safely: bool, rank: int) -> None:
    """Makes the rank say when it forks, and believe that Python does it well or not."""
    workers.FORKS_SAFELY = safely
    os.register_at_fork(before=lambda: print("this rank forks", flush=True))


@both
def test_a_rank_forks_only_where_python_can(tmp_path: Path, safely: bool) -> None:
    """Two workers for training, and two for each of three recalibrations; the weights are the same."""
    job = Job("train", f"out={tmp_path}/run", *CONFIG, ranks=3, prepare=partial(forking, safely))
    assert job.wait() == [0, 0, 0], job.said()
    assert job.said().count("this rank forks") == (24 if safely else 0)
    train(tmp_path / "without", *CONFIG, "data.workers=0")
    assert weights(tmp_path / "run") == weights(tmp_path / "without")


def training(out: Path, *overrides: str, safely: bool) -> tuple[Job, int]:
    """A job of one rank whose two workers are at work, and the rank's number."""
    prepare = partial(forking, safely)
    job = Job("train", f"out={out}", *CONFIG, "epochs=2000", "evaluate.every=2000", *overrides, prepare=prepare)
    (rank,) = (process.pid for process in job.processes)
    assert rank is not None
    deadline = time.monotonic() + TEST_TIMEOUT
    while not (out / "metrics.jsonl").exists() or len(loader_workers(rank)) < 2:
        assert job.processes[0].is_alive(), job.said()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    return job, rank


@both
def test_nothing_outlives_a_killed_rank(tmp_path: Path, safely: bool) -> None:
    job, rank = training(tmp_path / "run", safely=safely)
    family = descendants(rank)
    job.kill(0)
    assert job.wait() == [-signal.SIGKILL]
    deadline = time.monotonic() + TEST_TIMEOUT
    while any(map(alive, family)):
        assert time.monotonic() < deadline, [*filter(alive, family)]
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@both
def test_a_signal_to_all_processes_of_a_job_is_for_the_rank(
    tmp_path: Path, number: signal.Signals, safely: bool
) -> None:
    """As a batch system sends it to a step; the scores after the signal still need new workers."""
    out = tmp_path / "run"
    overrides = ("checkpoint.grace_seconds=4", "evaluate.every=0.2", "data.train_images=32")
    job, rank = training(out, *overrides, safely=safely)
    for pid in [rank, *descendants(rank)]:
        kill(pid, number)
    assert job.wait() == [128 + number], job.said()
    assert f"{number.name}: saved after iteration" in job.said()
    assert "Traceback" not in job.said()


def test_every_augmentation_can_be_sent_to_a_worker() -> None:
    data = open_dataset(DataConfig(), 0)
    pipelines = train_pipelines(AugmentConfig(), [*AUGMENTATIONS, *MIXES], data, 0.1)
    images = [pickle.loads(pickle.dumps(each)).transform(data.train.image(0)) for each in pipelines]
    assert {image.shape for image in images} == {(1, 16, 16)}
    sent = pickle.loads(pickle.dumps(evaluation_transform(data)))
    assert (sent(data.test.image(0)) == evaluation_transform(data)(data.test.image(0))).all()
