"""Replicas of known places: their distances, angles and barriers; and the rounds of a run, taken once more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from lookaround_ddp.analysis.diversity import measure_round
from lookaround_ddp.distributed.world import World
from lookaround_ddp.evaluation import loss_barrier
from tests.support.analyses import LOOKAROUND, Bowl, analysis, analyze, lines, point
from tests.support.runs import train


def test_the_barrier_is_the_height_above_the_line() -> None:
    """x (4 - x) between 0 and 4: both ends are 0, the middle 4; the line may slope. A convex loss is below it."""
    for slope in (0.0, 1.0, -3.0):
        assert loss_barrier([x * (4 - x) + slope * x for x in (0, 1, 2, 3, 4)]) == pytest.approx(4.0)
        assert loss_barrier([x * (x - 4) + slope * x for x in (0, 1, 2, 3, 4)]) == pytest.approx(-3.0)


def test_three_points_of_a_bowl() -> None:
    """From (1, 0) to (2, 0), (0, 0) and (1, 3): the mean is (1, 1). The NLL is 2 x^2 - y^2: a valley along x alone.

    Between two points dx and dy apart it lies t (1 - t) (2 dx^2 - dy^2) below the chord: 8 t (1 - t) for the first
    pair, highest at t = 1/4; and -7 t (1 - t) for the others, at t = 1/2.
    """
    scorer, world = Bowl(2, -1, bounds=(-1.0, 0.5, 1.5, 9.0)), World(0, 1, 3, torch.device("cpu"), "none")
    found = measure_round(scorer, [point(2, 0), point(0, 0), point(1, 3)], point(1, 0), world)
    assert found["distance"] == pytest.approx([math.sqrt(2), math.sqrt(2), 2])
    assert found["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert found["cosine"] == pytest.approx([-1, 0, 0])
    assert found["disagreement"] == [50, 25, 25]
    assert found["barrier"] == pytest.approx([-8 * 3 / 16, 7 / 4, 7 / 4])
    assert found["mean"]["nll"] == 1
    assert [score["nll"] for score in found["replica_scores"]] == [8, 0, -7]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_round_is_the_run_s_own(analysed: Path, tmp_path: Path, ranks: int) -> None:
    """From its first checkpoint: what the run recorded; the replicas' scores to the last bit."""
    run = analysed / "lookaround"
    said = analyze("diversity", run, "--at=5", f"--out={tmp_path}/d", ranks=ranks)
    (row,) = analysis(tmp_path / "d")["rounds"]
    assert (row["from"], row["iteration"]) == (5, 10)
    distances = lines(run, "distance")[15]  # a line has the last average step's
    assert row["distance"] == pytest.approx(distances, rel=1e-6)
    assert row["mean"] == pytest.approx(lines(run, "mean")[10], rel=1e-6)
    assert row["replica_scores"] == lines(run, "replicas")[10]
    assert all(-1 < each < 1 for each in row["cosine"])
    assert "NLL above the straight line" in said
    with Image.open(tmp_path / "d.png") as image:
        assert (image.format, image.size) == ("PNG", (1210, 770))


def test_of_every_checkpoint_and_beyond_the_run_s_end(analysed: Path) -> None:
    """The second round from a checkpoint is the first one from the next; results are beside the run, and only there."""
    run = analysed / "lookaround"
    before = sorted(path.name for path in run.rglob("*"))
    analyze("diversity", run, "--rounds=2", "--images=50", "--recalibrate")
    found = analysis(run / "diversity")
    rows = {(row["from"], row["iteration"]): row for row in found["rounds"]}
    assert list(rows) == [(5, 10), (5, 15), (10, 15), (10, 20), (15, 20), (15, 25)]
    for key in ("distance", "cosine", "disagreement", "barrier"):
        assert rows[5, 15][key] == rows[10, 15][key]
        assert rows[10, 20][key] == rows[15, 20][key]
    assert found["images"] == "50 test images"
    assert sorted(path.name for path in run.rglob("*")) == sorted([*before, "diversity.json", "diversity.png"])
    (run / "diversity.json").unlink()
    (run / "diversity.png").unlink()


def test_rounds_whose_length_changes(tmp_path: Path) -> None:
    """Rounds of an epoch, 5 iterations, until the second ends, then of 3."""
    run = tmp_path / "run"
    train(run, *LOOKAROUND, "average.k=[[0, epoch], [2, 3]]")
    said = analyze("diversity", run, "--at=5", "--rounds=3", "--images=20")
    found = analysis(run / "diversity")
    assert [row["iteration"] for row in found["rounds"]] == [10, 13, 16]
    assert found["k"] == "epoch, 3 from epoch 2 on"
    assert "3 replicas, k = epoch, 3 from epoch 2 on, the run's schedule" in " ".join(said.split())


def test_a_round_that_diverges_leaves_the_others(
    analysed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounds from checkpoint 10 diverge; those from 5 and 15 are what they are without it. If all do, it stops."""
    from lookaround_ddp.analysis.continuation import Continuation
    from lookaround_ddp.averaging import NotFiniteError
    from lookaround_ddp.cli import main

    train = Continuation.train

    def some(self: Continuation, first: int, count: int, rate: float | None) -> Iterator[int]:
        if first == 10:
            raise NotFiniteError("replica 1 not finite after iteration 12")
        return train(self, first, count, rate)

    command = ["analyze", "diversity", f"{analysed}/lookaround", "--images=20", f"--out={tmp_path}/d"]
    main(command)
    without = analysis(tmp_path / "d")["rounds"]
    monkeypatch.setattr(Continuation, "train", some)
    main(command)
    found = analysis(tmp_path / "d")
    assert found["rounds"] == [row for row in without if row["from"] != 10]
    assert found["diverged"] == ["from checkpoint 10: replica 1 not finite after iteration 12"]
    with pytest.raises(SystemExit, match="1"):
        main([*command, "--at=10"])
    assert capsys.readouterr().err == "stopped: from checkpoint 10: replica 1 not finite after iteration 12\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["single"], "single has no replicas that are averaged: name a run of Lookaround"),
        (["lookaround", "--at=7"], "has no checkpoint 7 of its rounds: it has 5, 10, 15"),
        (["lookaround", "--lr=-1"], "--lr is -1: give more than 0"),
        (["lookaround", "--rounds=0"], "--rounds is 0: give 1 or more"),
        (["lookaround", "--split=validation"], "the run held out no images"),
        (["lookaround", "--images=0"], "--images is 0: give 1 or more"),
        (["lookaround", "single"], "one run at a time"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(analysed: Path, arguments: list[str], message: str) -> None:
    named = [each if each.startswith("-") else f"{analysed}/{each}" for each in arguments]
    (line,) = analyze("diversity", *named, expect=2).splitlines()
    assert line.startswith("error: ")
    assert message in line
