"""What is written on a figure is on it, whatever runs are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from lookaround_ddp.analysis.output import Output, legend_below, short_names


@pytest.mark.parametrize("width", [6, 13])
def test_long_titles_and_legends_stay_inside(tmp_path: Path, width: float) -> None:
    figure = Figure(figsize=(width, 4), layout="constrained")
    axes = figure.subplots()
    for number in range(5):
        axes.plot([0, 1], label=f"cifar100-resnet50-lookaround-momentum-{number}")
    legend_below(figure, axes)
    output = Output(tmp_path / "figure")
    output.draw(figure, "runs/$CIFAR100-WITH-A-NAME: from the mean after iteration 48, no average step; " * 3)
    end = width * figure.dpi
    (legend,) = figure.legends
    for artist in (*(each for each in figure.texts if each.get_text()), legend):
        box = artist.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= end
    with Image.open(output.png) as image:
        assert image.width == round(110 * width)


def test_names_of_runs_are_short_where_that_tells_them_apart() -> None:
    assert short_names(["runs/a", "/other/b"]) == ["a", "b"]
    assert short_names(["one/a", "two/a"]) == ["one/a", "two/a"]
    assert short_names(["replica 0, iteration 5", "."]) == ["replica 0, iteration 5", "."]
