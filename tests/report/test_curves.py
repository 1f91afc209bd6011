"""The curves hold the numbers of the run folders, which are written by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lookaround_ddp.report.curves import draw_curves
from tests.support.records import (
    LOOKAROUND,
    ONE,
    SINGLE,
    THREE,
    begun,
    evaluation,
    groups,
    score,
    training,
    write_run,
)


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, *runs: Path) -> list[Axes]:
    """The axes of loss and accuracy, as they were when the file was written."""
    figures, save = [], Figure.savefig

    def kept(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see it
        draw_curves(groups(*runs), path)
    return figures[0].axes


def curves(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Name in the legend -> points."""
    legend = axes.get_legend()
    names = [] if legend is None else [entry.get_text() for entry in legend.get_texts()]
    assert names == [str(line.get_label()) for line in axes.lines]
    return {name: [(x, y) for x, y in line.get_xydata()] for name, line in zip(names, axes.lines, strict=True)}


def test_curves_hold_the_lines_of_two_runs(
    lookaround: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curves.png"
    loss, accuracy = drawn(monkeypatch, path, lookaround, single)
    names = [f"{LOOKAROUND}: replica {j}: {own}" for j, own in enumerate(("crop", "rotation", "perspective"))]
    assert curves(loss) == {
        names[0]: [(6.25, 1.5), (12.5, 0.5)],
        names[1]: [(6.25, 1.25), (12.5, 0.25)],
        names[2]: [(6.25, 1.75), (12.5, 0.75)],
        f"{SINGLE}: single network: crop, rotation, perspective": [(20, 0.0625)],
    }
    assert curves(accuracy) == {
        names[0]: [(10, 30), (20, 93.851)],
        names[1]: [(10, 41.5), (20, 95.239)],
        names[2]: [(10, 52), (20, 98.1)],
        f"{LOOKAROUND}: mean model": [(10, 88.5), (20, 96.487)],
        f"{SINGLE}: single network": [(15, 95.6), (20, 95.1)],
    }
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "training loss (cross-entropy)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "top-1 (%)")
    assert (loss.get_title(), accuracy.get_title()) == ("training loss", "test accuracy")
    assert [line.get_linestyle() for line in loss.lines] == ["-", "-", "-", "--"]  # the second run's are dashed
    colors = [line.get_color() for line in accuracy.lines]
    assert colors[:3] == [line.get_color() for line in loss.lines[:3]]  # a replica has one in both
    assert len(set(colors)) == 5
    assert accuracy.get_ylim()[1] > 98.1  # replicas above the mean are not cut off
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1320, 504))


def test_one_run_needs_no_name_in_its_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a single network that was never averaged has its accuracy drawn, which is its replica's."""
    lines = [training(10, 0.5), evaluation(10, replicas=[score(40)]), evaluation(20, replicas=[score(60)])]
    run = write_run(tmp_path / "alone", ONE, lines, replicas=[score(60)], seconds=1)
    loss, accuracy = drawn(monkeypatch, tmp_path / "curves.png", run)
    assert curves(loss) == {"single network: crop, rotation, perspective": [(10, 0.5)]}
    assert curves(accuracy) == {"single network": [(10, 40), (20, 60)]}


def test_of_seeds_the_mean_and_their_band_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies 40 and 60 at epoch 10, 70 and 80 at 20; one of them alone has epoch 15. A star ends in an average."""
    for seed, tops in enumerate(((40, 70), (60, 80))):
        lines = [training(10, 2 - seed), evaluation(10, mean=score(tops[0])), evaluation(20, mean=score(tops[1]))]
        lines += [evaluation(15, mean=score(1))] if seed else []
        final = {"mean": score(tops[1]), "trajectory": score(90 + seed)}
        run = write_run(tmp_path / f"swa-s{seed}", ONE, lines, **final, seconds=1)
        (run / "config.yaml").write_text(f"replicas: {ONE}\nseed: {seed}\ntrajectory: {{name: swa}}\n")
    loss, accuracy = drawn(monkeypatch, tmp_path / "c.png", *tmp_path.glob("swa-s*"))
    assert curves(loss) == {"single network: crop, rotation, perspective": [(10, 1.5)]}
    assert curves(accuracy) == {"single network": [(10, 50), (20, 75)], "average along time (swa)": [(20, 90.5)]}
    (band,) = accuracy.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(10, 40), (10, 60), (20, 70), (20, 80)}


def test_of_many_groups_what_they_are_judged_by_is_drawn(
    lookaround: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over the replicas. The legend is beside the axes."""
    mixed = {"logits": score(75, 95), "probabilities": score(74, 94)}
    lines = [training(20, 1, 2, 6), evaluation(20, replicas=[score(50)] * 3, ensemble=mixed)]
    run = write_run(tmp_path / "ensemble$x_{$", THREE, lines, replicas=[score(50)] * 3, ensemble=mixed, seconds=7)
    (run / "config.yaml").write_text(f"replicas: {THREE}\naverage: {{k: never}}\n")
    loss, accuracy = drawn(monkeypatch, tmp_path / "c.png", lookaround, single, run)
    points = [[line.get_label(), *map(tuple, line.get_xydata())] for line in (*loss.lines, *accuracy.lines)]
    assert points == [
        [LOOKAROUND, (6.25, 1.5), (12.5, 0.5)],
        [SINGLE, (20, 0.0625)],
        [r"ensemble\$x_{\$", (20, 3)],
        [LOOKAROUND, (10, 88.5), (20, 96.487)],
        [SINGLE, (15, 95.6), (20, 95.1)],
        [r"ensemble\$x_{\$", (20, 75)],
    ]


def test_a_run_that_has_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, accuracy = drawn(monkeypatch, tmp_path / "curves.png", begun(tmp_path / "begun"))
    names = ["replica 0: crop", "replica 1: rotation", "replica 2: perspective"]
    assert curves(loss) == dict(zip(names, ([(1, 2.5)], [(1, 2.25)], [(1, 2.0)]), strict=True))
    assert curves(accuracy) == {}


def test_a_short_run_is_seen_whole_and_of_a_long_one_the_end_of_each_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 points each has a mark, and the lowest replica is on the axes; of 60 the first epochs may be cut off."""
    lines = [training(1, 2.0, 2.1, 2.2)]
    lines += [evaluation(e, mean=score(100), replicas=[score(10 * e + j) for j in range(3)]) for e in (1, 2, 3)]
    loss, accuracy = drawn(monkeypatch, tmp_path / "short.png", write_run(tmp_path / "short", THREE, lines))
    assert [line.get_marker() for line in (*loss.lines, *accuracy.lines)] == ["o"] * 7
    bottom, top = accuracy.get_ylim()
    assert bottom < 10
    assert top > 100  # a line at 100 % is not on the frame
    lines = [
        evaluation(e, mean=score(min(90, 3 * e)), replicas=[score(min(90 - 30 * j, 2 * e)) for j in range(3)])
        for e in range(1, 61)
    ]
    _, accuracy = drawn(monkeypatch, tmp_path / "long.png", write_run(tmp_path / "long", THREE, lines))
    assert {line.get_marker() for line in accuracy.lines} == {"None"}
    assert 3 < accuracy.get_ylim()[0] < 30  # the last replica ends at 30
