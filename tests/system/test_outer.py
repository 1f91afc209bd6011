"""An outer optimizer in the trainer: the same bits on any ranks, and over a kill; what it does not go with."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lookaround_ddp.evaluation import score_text
from tests.support.ranks import same_state
from tests.support.runs import TINY, Job, die_at, train, weights

# 10 iterations, rounds end after 3, 6 and 9; a checkpoint after every second iteration
CONFIG = (*TINY, "average.outer={}", "checkpoint.every=0.4", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    said = train(out, *CONFIG)
    assert "3 replicas, k = 3, outer lr 0.7, momentum 0.9 (nesterov), on 1 process" in said
    return out


def test_on_two_and_three_processes(undisturbed: Path, tmp_path: Path) -> None:
    for ranks in (2, 3):
        train(tmp_path / str(ranks), *CONFIG, ranks=ranks)
        assert weights(tmp_path / str(ranks)) == weights(undisturbed)


def test_lr_1_without_momentum_is_lookaround(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path / "outer", *TINY, "average.outer={lr: 1, momentum: 0}")
    train(tmp_path / "lookaround", *TINY)
    names = ("outer", "lookaround")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in names)  # whose headers differ
    assert same_state(one, other)
    assert not same_state(one, load_file(undisturbed / "model.safetensors"))


@pytest.mark.parametrize(("iteration", "before", "after"), [(5, 3, 1), (7, 1, 3)])
def test_killed(undisturbed: Path, tmp_path: Path, iteration: int, before: int, after: int) -> None:
    """Checkpoint 4 is inside a round, 6 is from before an average step."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=before, prepare=partial(die_at, iteration, 0))
    assert -signal.SIGKILL in job.wait()
    assert f"resumed after iteration {iteration - 1}" in train(out, *CONFIG, ranks=after)
    assert weights(out) == weights(undisturbed)


@pytest.mark.parametrize("k", [5, 4])
def test_the_score_is_that_of_what_is_saved(tmp_path: Path, k: int) -> None:
    """Also where the run ends with a round: the mean that was evaluated before its average step has moved on then."""
    train(tmp_path / "run", *CONFIG, f"average.k={k}", "evaluate.every=1", "data.validation=30")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    job = Job("evaluate", str(tmp_path / "run"))
    assert job.wait() == [0], job.said()
    for name in ("mean", "validation"):
        assert f"{name} {score_text(result[name])}\n" in job.said()
    before = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-2]
    assert (json.loads(before)["mean"] == result["mean"]) == (k == 4)


def test_a_single_network_before_the_start(tmp_path: Path) -> None:
    """It is evaluated and saved meanwhile; the outer optimizer begins where the replicas do."""
    config = (*CONFIG, "average.start=1", "average.before_start=single", "evaluate.every=0.6")
    train(tmp_path / "one", *config)
    train(tmp_path / "three", *config, ranks=3)
    job = Job("train", f"out={tmp_path / 'killed'}", *config, prepare=partial(die_at, 5, 0))
    assert -signal.SIGKILL in job.wait()
    train(tmp_path / "killed", *config)
    assert weights(tmp_path / "one") == weights(tmp_path / "three") == weights(tmp_path / "killed")
