"""The plane through three networks as a map of loss and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookaround_ddp.analysis.output import Numbers, Output, empty_figure, legend_below, short_names, without_formulas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LEVELS = 18


HIGHEST = 20.0  # times the least loss; all above has one colour, so that the valley can have several


MARKERS = "o^sDvPX*"


def draw_plane(numbers: Numbers, output: Output) -> None:
    wide, high = (max(numbers[side]) - min(numbers[side]) for side in "xy")
    panel = min(max(4 * wide / high + 2, 4.4), 6.0)  # scales are equal: a narrow map needs no wide panel
    figure = empty_figure(2 * panel, 5.2)
    loss, accuracy = figure.subplots(1, 2)
    nll = np.array(numbers["nll"], dtype=float)
    levels = loss_levels(nll)
    _map(figure, loss, numbers, nll, levels, "viridis_r", "NLL (nats per image)")
    top1 = np.array(numbers["top1"], dtype=float)
    low, high = float(np.nanmin(top1)), float(np.nanmax(top1))
    steps = np.linspace(low, high if high > low else low + 1, LEVELS)
    _map(figure, accuracy, numbers, top1, steps, "viridis", "top-1 (%)")
    loss.set_title("loss" if np.isfinite(nll).all() else "loss (grey: not finite)")
    accuracy.set_title("accuracy")
    legend_below(figure, loss)
    runs = ", ".join(short_names(numbers["runs"]))
    output.draw(figure, f"{runs}: {numbers['images']}, batch-norm: {numbers['batch_norm']}")


def loss_levels(nll: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns contour levels, evenly spaced in the logarithm of the loss, up to HIGHEST times the least loss."""
    finite = nll[np.isfinite(nll)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low <= 0:
        return np.linspace(low, high if high > low else low + 1, LEVELS)
    return np.geomspace(low, max(min(high, HIGHEST * low), 1.001 * low), LEVELS)


def _map(
    figure: Figure,
    axes: Axes,
    numbers: Numbers,
    values: NDArray[np.float64],
    levels: Sequence[float] | NDArray[np.float64],
    colours: str,
    label: str,
) -> None:
    shown = np.ma.masked_invalid(values)
    extend: Any = "max" if shown.max() > levels[-1] else "neither"
    drawn = axes.contourf(numbers["x"], numbers["y"], shown, levels=levels, cmap=colours, extend=extend)
    axes.set_facecolor("0.85")  # shows where the loss is not finite
    axes.contour(numbers["x"], numbers["y"], shown, levels=levels[::2], colors="white", linewidths=0.4, alpha=0.6)
    bar = figure.colorbar(drawn, ax=axes, label=label)
    bar.set_ticks(list(levels[::3]), labels=[f"{level:.3g}" for level in levels[::3]])
    names = short_names([each["name"] for each in numbers["networks"]])
    for place, (name, each) in enumerate(zip(names, numbers["networks"], strict=True)):
        off = each["distance_from_plane"]
        away = f", {off:.2g} off the plane" if off > 1e-3 * max(abs(each["x"]), abs(each["y"]), 1e-12) else ""
        looks: dict[str, Any] = {"markeredgecolor": "white", "markersize": 9, "linestyle": "none"}
        marker = MARKERS[place % len(MARKERS)]
        looks |= {"marker": marker, "color": f"C{1 + place % 9}"}
        axes.plot([each["x"]], [each["y"]], label=without_formulas(f"{name}{away}"), **looks)
    axes.set(xlabel="from the first network towards the second (L2 norm)", ylabel="at a right angle to it (L2 norm)")
    axes.set_aspect("equal", adjustable="box")
