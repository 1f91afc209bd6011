"""Loss and accuracy curves of runs, as a PNG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookaround_ddp.errors import UserError
from lookaround_ddp.files import write_picture
from lookaround_ddp.report.runs import Group, RunRecord, judged_score
from lookaround_ddp.report.table import augmentation_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MEAN, SINGLE = "black", "C7"


DETAILED = 2  # up to so many groups have a curve for each replica; if there are more, each has one curve


SHORT = 20  # up to so many points of a curve are marked, and none of them is cut off


Curve = list[tuple[float, float]]  # (epoch, value)


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Draws training loss, and test accuracy of what each method is judged by, over epochs.

    One or two groups also have each replica's curves. Several seeds are drawn as their mean, and a band from the
    lowest to the highest. A star is the final score of an average along time, or of an ensemble of the end alone.

    Raises:
        UserError: the file cannot be written, or its suffix names no format.
    """
    from matplotlib.figure import Figure  # takes seconds to import, and only rank 0 draws

    detailed = len(groups) <= DETAILED
    figure = Figure(figsize=(11 if detailed else 14, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, group in enumerate(groups):
        if detailed:
            prefix = f"{_curve_title(group)}: " if len(groups) > 1 else ""
            _draw_replicas(group, loss, accuracy, "--" if number else "-", prefix)
        else:
            _draw_judged(group, loss, accuracy, f"C{number % 10}", "-" if number < 10 else "--")
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)", title="training loss")
    accuracy.set(xlabel="epoch", ylabel="top-1 (%)", title="test accuracy")
    tops = [y for group in groups for run in _drawn(group) for _, y in _judged(run)]
    if tops:  # the first epochs of a long run may be cut off below
        middle, drawn = sorted(tops)[len(tops) // 2], [list(curve.get_ydata()) for curve in accuracy.lines]
        # of all that the legend lists, the second half is seen, or the whole
        seen = [min(curve if len(curve) <= SHORT else curve[len(curve) // 2 :]) for curve in drawn]
        bottom, top = max(0.0, min(middle - 4 * (max(tops) - middle) - 3, *seen)), max(map(max, drawn))
        margin = 1 + (top - bottom) / 50  # a curve on the frame would be hidden by it
        accuracy.set_ylim(bottom=bottom - margin, top=top + margin)
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
        if axes.lines and detailed:
            axes.legend(fontsize=8)
    if detailed:
        figure.suptitle(", ".join(map(_curve_title, groups)))
    elif loss.lines:
        figure.legend(handles=loss.lines, loc="outside right upper", fontsize=8)
        if any(line.get_marker() == "*" for line in accuracy.lines):
            figure.supxlabel("* average along time, or ensemble of snapshots, at the end", fontsize=8)
    try:
        write_picture(path, figure, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"curves cannot be drawn into {path}: {error}") from None


def _draw_replicas(group: Group, loss: Axes, accuracy: Axes, style: str, prefix: str) -> None:
    for number, own in enumerate(group.config.replicas):
        color = SINGLE if group.alone else f"C{number % 10}"
        network = "single network" if group.alone else f"replica {number}"
        name = f"{prefix}{network}: {', '.join(map(augmentation_name, own))}"
        _plot_band(loss, [_losses(run, number) for run in _drawn(group)], style, name, color=color, lw=1)
        if not group.alone:
            curves = [_replica(run, number) for run in group.runs]
            _plot_band(accuracy, curves, style, name, color=color, lw=1, alpha=0.8)
    label = "single network" if group.alone else "ensemble" if group.config.average.k == "never" else "mean model"
    color = SINGLE if group.alone else MEAN
    _plot_band(accuracy, [_judged(run) for run in _drawn(group)], style, f"{prefix}{label}", color=color, lw=2)
    _star(accuracy, group, prefix, color)


def _draw_judged(group: Group, loss: Axes, accuracy: Axes, color: str, style: str) -> None:
    name = _curve_title(group)
    losses = [_mean_loss(run) for run in _drawn(group)]
    _plot_band(loss, losses, style, name, color=color, lw=1)
    _plot_band(accuracy, [_judged(run) for run in _drawn(group)], style, name, color=color, lw=1.5)
    _star(accuracy, group, f"{name}: ", color)


def _plot_band(axes: Axes, curves: Sequence[Curve], style: str, label: str, **looks: Any) -> None:
    """Draws the mean of curves at the epochs that all have, with a band over them if they are several."""
    values = [dict(curve) for curve in curves if curve]
    if not values:
        return
    epochs = sorted(set.intersection(*(set(value) for value in values)))
    columns = [[value[epoch] for value in values] for epoch in epochs]
    marker = "o" if len(epochs) <= SHORT else None  # a single point has no line
    axes.plot(epochs, list(map(statistics.fmean, columns)), style, label=label, marker=marker, ms=3, **looks)
    if len(values) > 1:
        lows, highs = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, lows, highs, color=looks["color"], alpha=0.15, lw=0)


def _star(accuracy: Axes, group: Group, prefix: str, color: str) -> None:
    """Draws the score that a run's method is judged by as a star, if that has no curve."""
    finals = [found for found in map(judged_score, group.finished) if found is not None]
    drawn = "single network", "mean model"
    if not finals or finals[0][0] in drawn or (group.config.average.k == "never" and not group.alone):
        return
    top = statistics.fmean(score["top1"] for _, score in finals)
    end = (group.finished[0].result or {}).get("epochs") or group.config.epochs  # a soup's are its ingredients'
    accuracy.plot([end], [top], "*", color=color, ms=10, label=f"{prefix}{finals[0][0]}")


def _drawn(group: Group) -> tuple[RunRecord, ...]:
    """Returns the finished runs, or all while none is: one that has just begun would leave the mean few epochs."""
    return group.finished or group.runs


def _losses(run: RunRecord, number: int) -> Curve:
    return [(line["epoch"], line["loss"][number]) for line in run.lines if "loss" in line]


def _mean_loss(run: RunRecord) -> Curve:
    return [(line["epoch"], statistics.fmean(line["loss"])) for line in run.lines if "loss" in line]


def _replica(run: RunRecord, number: int) -> Curve:
    return [(line["epoch"], line["replicas"][number]["top1"]) for line in run.lines if line.get("replicas")]


def _judged(run: RunRecord) -> Curve:
    """Returns the accuracy of the mean model, the ensemble, or the single network, while it trained."""
    curve = []
    for line in run.lines:
        if "ensemble" in line:
            curve.append((line["epoch"], line["ensemble"]["logits"]["top1"]))
        elif "mean" in line:
            curve.append((line["epoch"], line["mean"]["top1"]))
        elif line.get("replicas") and run.alone:  # a single network that was never averaged
            curve.append((line["epoch"], line["replicas"][0]["top1"]))
    return curve


def _curve_title(group: Group) -> str:
    seeds = len(_drawn(group))
    name = group.name.replace("$", r"\$")  # no formula
    return name if seeds == 1 else f"{name} ({seeds} seeds)"
