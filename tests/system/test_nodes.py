"""Averages inside nodes in the trainer: the same bits on any ranks, and over a kill; what is shown and measured."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.support.runs import TINY, Job, die_at, train, weights

# 10 iterations, averages inside nodes after 2, 6 and 10, over all after 4 and 8; a checkpoint after every second
CONFIG = (
    *TINY,
    "average.k=2",
    "average.nodes={size: 2, k: 4}",
    "replicas=[[crop],[rotation],[perspective],[hflip]]",
    "checkpoint.every=0.4",
    "checkpoint.keep=3",
    "record.every=1",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert "4 replicas, k = 2, in nodes of 2, k = 4 over all, on 1 process" in train(out, *CONFIG)
    return out


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_on_more_processes(undisturbed: Path, tmp_path: Path, ranks: int) -> None:
    """A node on each; one on one and one on two; each on two."""
    train(tmp_path / "run", *CONFIG, ranks=ranks)
    assert weights(tmp_path / "run") == weights(undisturbed)


def test_a_node_on_ranks_that_host_another_too(tmp_path: Path) -> None:
    """Nodes of three replicas, on ranks that host two each."""
    config = (*CONFIG, "average.nodes.size=3", "replicas=[[crop],[rotation],[perspective],[hflip],[crop],[rotation]]")
    for ranks in (1, 3):
        train(tmp_path / str(ranks), *config, ranks=ranks)
    assert weights(tmp_path / "1") == weights(tmp_path / "3")


@pytest.mark.parametrize(("iteration", "before", "after"), [(5, 4, 1), (6, 1, 2), (9, 2, 4)])
def test_killed(undisturbed: Path, tmp_path: Path, iteration: int, before: int, after: int) -> None:
    """Checkpoint 4 is from before an average over all, 6 from before one inside nodes, 8 as 4."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=before, prepare=partial(die_at, iteration, 0))
    assert -signal.SIGKILL in job.wait()
    assert f"resumed after iteration {iteration - iteration % 2}" in train(out, *CONFIG, ranks=after)
    assert weights(out) == weights(undisturbed)


def test_distances_are_those_to_the_mean_over_all(undisturbed: Path) -> None:
    """They are new after iterations 4 and 8 alone."""
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    distances = {line["iteration"]: line["distance"] for line in lines if "distance" in line}
    assert [iteration for iteration in range(2, 11) if distances[iteration] != distances[iteration - 1]] == [5, 9]
    assert distances[4] is None
    assert len(distances[5]) == 4


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("average.nodes.size=3", "average: nodes.size is 3: give 2 or more, and such that it divides the 4 replicas"),
        ("average.nodes.k=5", "average: nodes.k is 5: give a multiple of k = 2, such as 4"),
        ("average.nodes.k=epoch", "average: nodes.k is 5: give a multiple of k = 2, such as 4"),
        ("average.delay=1", "average: nodes average when a round ends, not 1 steps later: use delay=0"),
        (
            "average.k=[[0, 2], [1, 4]]",
            "average: nodes average over all after a multiple of k steps: give one k for all",
        ),
        ("average.k=never", "average: nodes average among themselves when a round ends, and k=None has none"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, other: str, message: str) -> None:
    said = train(tmp_path / "run", *CONFIG, other, expect=2)
    assert message in said
    assert len(said.splitlines()) == 1
