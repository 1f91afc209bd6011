"""Delayed averaging in the trainer: the same bits on any ranks, and over a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import TINY, resumes, train, weights

# 10 iterations, k = 3, delay 2: corrections after 5 and 8; a checkpoint after every second iteration
CONFIG = (*TINY, "average.delay=2", "checkpoint.every=0.4", "checkpoint.keep=3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(out, *CONFIG)
    return out


def test_on_three_processes(undisturbed: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", *CONFIG, ranks=3)
    assert weights(tmp_path / "run") == weights(undisturbed)
    train(tmp_path / "now", *TINY)
    assert weights(tmp_path / "now") != weights(undisturbed)


@pytest.mark.parametrize(("iteration", "before", "after"), [(4, 3, 1), (5, 1, 3), (7, 3, 3)])
def test_killed_before_the_mean_came(
    undisturbed: Path, tmp_path: Path, iteration: int, before: int, after: int
) -> None:
    """Checkpoint 4 is between an average step and its correction, 6 before the next step, 8 before its correction."""
    out = tmp_path / "run"
    went_on, _ = resumes(out, *CONFIG, ranks=before, killed_at=iteration, only=0, on=after)
    assert went_on == iteration - iteration % 2
    assert weights(out) == weights(undisturbed)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("optimizer.lookahead={k: 3}", "optimizer.lookahead needs the mean when a round ends, not later"),
        ("trajectory.name=swa", "an average along time needs the mean when a round ends, not later"),
        ("average.delay=3", "average: delay is 3: a mean can arrive 0 to k - 1 = 2 steps later"),
    ],
)
def test_what_a_late_mean_does_not_go_with(tmp_path: Path, other: str, message: str) -> None:
    said = train(tmp_path / "run", *CONFIG, other, expect=2)
    assert message in said
    assert len(said.splitlines()) == 1
