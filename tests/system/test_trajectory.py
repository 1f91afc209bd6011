"""Replicas that train on from a checkpoint: the run's own iterations, with the learning rate that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lookaround_ddp.config.load import load_config
from lookaround_ddp.optim.schedule import learning_rate
from tests.support.analyses import LOOKAROUND, analysis, analyze, lines
from tests.support.runs import train


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one learning rate, 0.1."""
    folder = tmp_path_factory.mktemp("constant") / "run"
    train(folder, *LOOKAROUND, "schedule.name=constant", "optimizer.lr=0.1")
    return folder


@pytest.mark.parametrize("ranks", [1, 3])
def test_until_the_next_average_step_it_is_the_run(constant: Path, tmp_path: Path, ranks: int) -> None:
    """From checkpoint 5 to iteration 10: the run's scores of replicas and virtual mean there; other rates' differ."""
    said = analyze(
        "trajectory", constant, "--at=5", "--iterations=5", "--lr=0.1,0.01", f"--out={tmp_path}/t", ranks=ranks
    )
    found = analysis(tmp_path / "t")
    assert found["replicas"] == ["crop", "rotation", "perspective"]
    fast, slow = found["curves"]
    assert (fast["lr"], slow["lr"]) == (0.1, 0.01)
    assert fast["replicas"][5] == lines(constant, "replicas")[10]
    assert fast["mean"][5] == pytest.approx(lines(constant, "mean")[10], rel=1e-6)
    assert slow["replicas"][5] != fast["replicas"][5]
    for curve in (fast, slow):
        assert len(curve["mean"]) == len(curve["replicas"]) == 6
        assert curve["replicas"][0] == [curve["mean"][0]] * 3  # where all start, to the last bit
    assert fast["mean"][0] == slow["mean"][0]
    assert "from the mean after iteration 5, no average step for 5 iterations" in said
    with Image.open(tmp_path / "t.png") as image:
        assert (image.format, image.size) == ("PNG", (924, 726))


def test_a_rate_that_diverges_does_not_cost_the_others_theirs(constant: Path, tmp_path: Path) -> None:
    """At 1e30 weights are inf after a step or two. The other's curve is what it is alone, momentum and all."""
    arguments = ("trajectory", constant, "--at=5", "--iterations=3", "--images=40")
    said = analyze(*arguments, "--lr=1e30,0.01", f"--out={tmp_path}/both", ranks=3)
    analyze(*arguments, "--lr=0.01", f"--out={tmp_path}/alone")
    broken, whole = analysis(tmp_path / "both")["curves"]
    (alone,) = analysis(tmp_path / "alone")["curves"]
    assert whole == alone
    assert whole["diverged"] is None
    done = len(broken["mean"]) - 1  # iterations that left numbers
    assert 0 <= done < 3
    assert len(broken["replicas"]) == done + 1
    assert broken["mean"][0] == alone["mean"][0]
    assert f"learning rate 1e+30: replicas 0, 1, 2 not finite after iteration {5 + done + 1}" in broken["diverged"]
    assert broken["diverged"] in said


def test_beyond_the_run_with_the_usual_rates(analysed: Path, tmp_path: Path) -> None:
    """Of the newest checkpoint; the default rates are shares of the run's first."""
    run = analysed / "lookaround"
    analyze("trajectory", run, "--iterations=2", "--recalibrate", "--images=40", f"--out={tmp_path}/t")
    found = analysis(tmp_path / "t")
    first = learning_rate(load_config(run / "config.yaml"), 0, 5)
    assert [curve["lr"] for curve in found["curves"]] == pytest.approx([first, first / 10, first / 100])
    assert (found["checkpoint"], found["images"], found["batch_norm"]) == (15, "40 test images", "measured anew")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["single"], "single has no replicas that are averaged"),
        (["lookaround", "--at=4"], "has no checkpoint 4 of its rounds: it has 5, 10, 15"),
        (["lookaround", "--iterations=0"], "--iterations is 0: give 1 or more"),
        (["lookaround", "--lr=0.1,0"], "--lr has 0: give learning rates greater than 0"),
        (["lookaround", "--lr=1e30"], "not finite after iteration"),
    ],
)
def test_a_mistake_is_one_line(analysed: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    named = [each if each.startswith("-") else f"{analysed}/{each}" for each in arguments]
    expect = 1 if "1e30" in arguments[-1] else 2
    *_, line = analyze("trajectory", *named, f"--out={tmp_path}/t", expect=expect).splitlines()
    assert line.startswith(("error: ", "stopped: "))
    assert message in line
