"""Planes of known geometry, and those through runs' replicas and models: exact, shared by ranks, gone on with."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lookaround_ddp.analysis.geometry import axis, plane_through
from lookaround_ddp.analysis.plane_figure import loss_levels
from lookaround_ddp.analysis.scoring import Pace
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError
from tests.support.analyses import LOOKAROUND, SINGLE, Bowl, Point, analysis, analyze, lines, point
from tests.support.runs import Job, train

GRID = ("--points=3", "--margin=1", "--images=80", "evaluate.recalibrate_iterations=1")


class Space(nn.Module):
    """A network whose weights are a place in space, with a running variance beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer("running_var", torch.zeros(1))


def place(*w: float, variance: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([float(each) for each in w]), "running_var": torch.tensor([variance])}


def test_a_plane_in_space() -> None:
    """w0 = (1, 0, 0), w1 = (3, 0, 0), w2 = (2, 5, 0): u is x, v is y, and (2, 2, 7) is 7 above."""
    corners = [place(1, 0, 0), place(3, 0, 0, variance=3.0), place(2, 5, 0)]
    plane = plane_through(Space(), corners)
    assert (plane.width, plane.foot, plane.height) == (2, 1, 5)
    assert plane.place(torch.tensor([2.0, 2.0, 7.0]).double()) == (1, 2, 7)
    for x, y in ((0, 0), (2, 0), (1, 5), (0.5, -2), (-3, 4)):
        state = plane.state(x, y)
        assert state["w"].tolist() == pytest.approx([1 + x, y, 0])
        share = (x - y / 5) / 2  # of w1
        assert state["running_var"].item() == pytest.approx(max(0.0, 1 + 2 * share))
    assert plane.state(-3, 4)["running_var"].item() == 0  # 1 - 3.8: no variance


def test_the_loss_on_a_plane_of_a_bowl() -> None:
    """x^2 + 4 y^2 about (0, 0), on a plane whose axes are turned by 45 degrees."""
    scorer = Bowl(1, 4)
    plane = plane_through(Point(), [point(1, 0), point(2, 1), point(0, 5)])
    for x, y in ((0.0, 0.0), (1.0, 0.0), (0.5, 2.0)):
        there = np.array([1, 0]) + x * np.array([1, 1]) / 2**0.5 + y * np.array([-1, 1]) / 2**0.5
        assert scorer.score(plane.state(x, y))["nll"] == pytest.approx(there[0] ** 2 + 4 * there[1] ** 2, rel=1e-5)


def test_three_on_a_line_span_no_plane() -> None:
    with pytest.raises(UserError, match="on one line"):
        plane_through(Space(), [place(0, 0, 0), place(1, 1, 1), place(3, 3, 3)])
    with pytest.raises(UserError, match="are the same"):
        plane_through(Space(), [place(0, 0, 1), place(0, 0, 1), place(3, 3, 3)])


def test_axes_and_levels() -> None:
    assert axis([3, 1, 2], 0.5, 5).tolist() == [0, 1, 2, 3, 4]
    assert loss_levels(np.array([0.1, 1.0, np.nan]))[[0, -1]] == pytest.approx([0.1, 1.0])
    assert loss_levels(np.array([0.1, 1000.0]))[[0, -1]] == pytest.approx([0.1, 2.0])  # 20 times the least
    for values in ([0.0, 0.0], [np.nan], [5.0, 5.0], [-1.0, 2.0]):
        levels = loss_levels(np.array(values))
        assert (np.diff(levels) > 0).all()


def test_the_cost_leaves_out_what_only_the_first_point_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first point of 40 s, which loads the images, then 12 s each: 48 s after 2 of 6, not 4 x 26."""
    clock = iter([100.0, 140.0, 152.0, 164.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace(6, "points", World(0, 1, 1, torch.device("cpu"), "none"))
    for done in (1, 2, 3):
        pace.tick(done)
    assert capsys.readouterr().out.splitlines() == [
        "6 points on 1 rank: about 3 min",
        "2 of 6 points are done, about 48 s are left",
        "3 of 6 points are done, about 36 s are left",
    ]


def test_the_plane_of_a_run_s_replicas(analysed: Path, tmp_path: Path) -> None:
    """As they were before the last average step, with the scores that the run recorded; their mean is in the middle."""
    run = analysed / "lookaround"
    said = analyze("plane", run, *GRID[:2], "--no-recalibrate", f"--out={tmp_path}/p")
    found = analysis(tmp_path / "p")
    *replicas, mean = found["networks"]
    recorded = lines(run, "replicas")[15]
    assert [{"top1": r["top1"], "top5": r["top5"], "nll": r["nll"]} for r in replicas] == recorded
    assert mean["nll"] == pytest.approx(lines(run, "mean")[15]["nll"], rel=1e-6)
    for side in ("x", "y"):
        assert mean[side] == pytest.approx(np.mean([each[side] for each in replicas]), abs=1e-5)
    assert (replicas[0]["x"], replicas[0]["y"]) == (0, 0)
    assert all(each["distance_from_plane"] < 1e-4 for each in found["networks"])
    extent = [each["x"] for each in replicas]
    assert found["x"] == pytest.approx(np.linspace(2 * min(extent) - max(extent), 2 * max(extent) - min(extent), 3))
    assert np.shape(found["nll"]) == np.shape(found["top1"]) == (3, 3)
    assert "the replicas' mean phi: top-1" in said
    with Image.open(tmp_path / "p.png") as image:
        assert (image.format, image.height) == ("PNG", 572)


def interrupt(rank: int) -> None:
    """Ctrl-C while the eighth point is scored."""
    from lookaround_ddp.evaluation import Scorer

    score, calls = Scorer.score, iter(range(7))

    def interrupted(self: Scorer, state: dict[str, torch.Tensor]) -> dict[str, float]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return score(self, state)

    Scorer.score = interrupted  # type: ignore[method-assign]


def interrupt_at_once(rank: int) -> None:
    """Ctrl-C of a terminal, which every rank gets, before the first point."""
    from lookaround_ddp.evaluation import Scorer

    def interrupted(self: Scorer, state: dict[str, torch.Tensor]) -> dict[str, float]:
        raise KeyboardInterrupt

    Scorer.score = interrupted  # type: ignore[method-assign]


def test_an_interrupted_grid_is_gone_on_with_on_other_ranks(analysed: Path, tmp_path: Path) -> None:
    arguments = ("plane", f"{analysed}/lookaround", *GRID)
    analyze(*arguments, f"--out={tmp_path}/whole")
    job = Job("analyze", *arguments, f"--out={tmp_path}/p", prepare=interrupt)
    assert job.wait() == [130]
    assert job.said().splitlines()[-1] == "interrupted: the same command goes on with the points that are done"
    all_ranks = Job("analyze", *arguments, f"--out={tmp_path}/q", ranks=3, prepare=interrupt_at_once)
    assert all_ranks.wait() == [130] * 3
    assert all_ranks.said().count("interrupted") == 1
    assert not (tmp_path / "p.json").exists()
    for different in ("--split=train", "seed=7"):  # other images, or others for batch-norm: none of those is used
        other = analyze(*arguments, different, f"--out={tmp_path}/p")
        assert "13 points, a pass over 80 images and 48 training images each" in other  # 3 replicas, 16 in a batch
        assert "were kept" not in other
        (tmp_path / "p.json").unlink()
        assert Job("analyze", *arguments, f"--out={tmp_path}/p", prepare=interrupt).wait() == [130]
    said = analyze(*arguments, f"--out={tmp_path}/p", ranks=3)
    assert "7 of 13 points were kept of a run that was interrupted" in said
    assert analysis(tmp_path / "p") == analysis(tmp_path / "whole")
    assert not (tmp_path / "p.partial.json").exists()


def test_the_plane_through_three_runs_marks_a_fourth(analysed: Path, tmp_path: Path) -> None:
    """Their shipped models; one that is off the plane is marked where it is nearest."""
    for seed in (1, 2):
        train(tmp_path / f"s{seed}", *SINGLE, f"seed={seed}")
    runs = (analysed / "lookaround", analysed / "single", tmp_path / "s1", tmp_path / "s2")
    analyze("plane", *runs, *GRID, f"--out={tmp_path}/p")
    networks = analysis(tmp_path / "p")["networks"]
    assert [each["name"] for each in networks] == [str(run) for run in runs]
    assert [each["distance_from_plane"] < 1e-4 for each in networks] == [True, True, True, False]


def test_a_checkpoint_and_what_was_trained_from_it(analysed: Path, tmp_path: Path) -> None:
    """Fig. 7: a network after its second epoch, and after 2 and 7 iterations more on one augmentation or another."""
    began = analysed / "single" / "checkpoints" / "10"
    own = ("schedule.name=constant", "optimizer.lr=0.02", "average.k=1")
    for name, augmentation, iterations in (("h", "hflip", 2), ("r", "randaugment", 7)):
        values = (f"replicas=[[{augmentation}]]", f"iterations={iterations}", f"model.pretrained={began}")
        train(tmp_path / name, *SINGLE, *own, *values)
    runs = (began, tmp_path / "h", tmp_path / "r")
    analyze("plane", *runs, *GRID[:2], "--no-recalibrate", f"--out={tmp_path}/p")
    networks = analysis(tmp_path / "p")["networks"]
    assert [each["name"] for each in networks] == [str(run) for run in runs]
    assert all(each["distance_from_plane"] < 1e-4 for each in networks)
    scores = [
        lines(analysed / "single", "mean")[10],
        lines(tmp_path / "h", "mean")[2],
        lines(tmp_path / "r", "mean")[7],
    ]
    assert [each["nll"] for each in networks] == pytest.approx([score["nll"] for score in scores], rel=1e-6)
    assert 0 < networks[1]["x"] < np.hypot(networks[2]["x"], networks[2]["y"])  # 2 iterations take it less far than 7
    analyze("plane", *runs, *GRID, "--points=2")  # batch-norm measured anew
    assert (analysed / "single" / "plane.png").exists()
    for suffix in ("json", "png"):
        (analysed / "single" / f"plane.{suffix}").unlink()


def test_a_checkpoint_of_a_run_with_replicas(analysed: Path, tmp_path: Path) -> None:
    """By its folder, alone, as by --at; beside others it is its mean model."""
    run = analysed / "lookaround"
    few = ("--points=2", "--images=20", "--no-recalibrate")
    analyze("plane", run / "checkpoints" / "10", *few, f"--out={tmp_path}/folder")
    analyze("plane", run, "--at=10", *few, f"--out={tmp_path}/at")
    assert analysis(tmp_path / "folder")["networks"] == analysis(tmp_path / "at")["networks"]
    corners = [run / "checkpoints" / name for name in ("5", "10", "15")]
    analyze("plane", *corners, *few[:1], "--no-recalibrate", f"--out={tmp_path}/means")
    found = [each["nll"] for each in analysis(tmp_path / "means")["networks"]]
    assert found == pytest.approx([lines(run, "mean")[each]["nll"] for each in (5, 10, 15)], rel=1e-6)


def test_two_replicas_and_where_they_came_from(tmp_path: Path) -> None:
    """The third corner is the mean at the oldest checkpoint; the replicas' mean is halfway between them."""
    run = tmp_path / "two"
    train(run, *LOOKAROUND, "replicas=[[crop],[rotation]]")
    analyze("plane", run, *GRID)
    one, other, earlier, mean = analysis(run / "plane")["networks"]
    assert [each["name"] for each in (one, other, earlier)] == [
        "replica 0, iteration 15",
        "replica 1, iteration 15",
        "mean phi, iteration 5",
    ]
    assert (mean["x"], mean["y"]) == pytest.approx((other["x"] / 2, 0), abs=1e-5)
    assert earlier["y"] > 0
    assert "give an --at" in analyze("plane", run, "--at=5", expect=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["single"], "a plane goes through three networks: name three runs, or one that has replicas"),
        (["lookaround", "single"], "a plane goes through three networks"),
        (["lookaround", "single", "lookaround"], "is named twice"),
        (["lookaround/checkpoints/6"], "has no checkpoint 6 of its rounds: it has 5, 10, 15"),
        (["single/checkpoints/6", "lookaround", "single"], "has no checkpoint 6: it has 5, 10, 15"),
        (["lookaround", "--at=6"], "has no checkpoint 6 of its rounds: it has 5, 10, 15"),
        (["lookaround", "model.width=8"], "its checkpoint is of another network than the config describes"),
        (["lookaround", "--points=1"], "--points is 1: give 2 or more"),
        (["lookaround", "--margin=-1"], "--margin is -1: give 0 or more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(analysed: Path, arguments: list[str], message: str) -> None:
    named = [each if each.startswith("-") or "=" in each else f"{analysed}/{each}" for each in arguments]
    *_, line = analyze("plane", *named, expect=2).splitlines()  # a value that differs from the run's is a warning
    assert line.startswith("error: ")
    assert message in line
