"""Loss and accuracy curves of runs, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

from lookaround_ddp.config import UserError
from lookaround_ddp.report.runs import RunRecord
from lookaround_ddp.report.table import augmentation_name

MEAN = "black"


def draw_curves(runs: Sequence[RunRecord], path: Path) -> None:
    """Training loss of each replica, and test accuracy of replicas and mean model, by epoch.

    Raises:
        UserError: the file cannot be written, or its suffix names no format.
    """
    from matplotlib.figure import Figure  # takes seconds to import, and only rank 0 draws

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        _draw(run, loss, accuracy, dashed=number > 0, prefix=f"{run.name}: " if len(runs) > 1 else "")
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)", title="training loss")
    accuracy.set(xlabel="epoch", ylabel="top-1 (%)", title="test accuracy")
    tops = [line["mean"]["top1"] for run in runs for line in run.lines if "mean" in line]
    if tops:  # the first epochs may be cut off below
        middle, highest = sorted(tops)[len(tops) // 2], max(max(curve.get_ydata()) for curve in accuracy.lines)
        accuracy.set_ylim(bottom=max(0.0, middle - 4 * (max(tops) - middle) - 3), top=min(100.0, highest + 1))
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(", ".join(run.name for run in runs))
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"curves cannot be drawn into {path}: {error}") from None


def _draw(run: RunRecord, loss: Axes, accuracy: Axes, dashed: bool, prefix: str) -> None:
    style, alone = "--" if dashed else "-", len(run.config.replicas) == 1
    training = [line for line in run.lines if "loss" in line]
    scores = [line for line in run.lines if "mean" in line or "replicas" in line]
    for number, own in enumerate(run.config.replicas):
        color = "C7" if alone else f"C{number % 10}"
        network = "single network" if alone else f"replica {number}"
        name = f"{prefix}{network}: {', '.join(map(augmentation_name, own))}"
        loss.plot(
            [line["epoch"] for line in training],
            [line["loss"][number] for line in training],
            style,
            color=color,
            lw=1,
            label=name,
        )
        own_scores = [(line["epoch"], line["replicas"][number]["top1"]) for line in scores if line.get("replicas")]
        if own_scores and not alone:
            accuracy.plot(*zip(*own_scores, strict=True), style, color=color, lw=1, alpha=0.8, label=name)
    means = [(line["epoch"], line["mean"]["top1"]) for line in scores if "mean" in line]
    if alone and not means:  # a single network that was never averaged
        means = [(line["epoch"], line["replicas"][0]["top1"]) for line in scores]
    if means:
        label = f"{prefix}single network" if alone else f"{prefix}mean model"
        accuracy.plot(*zip(*means, strict=True), style, color="C7" if alone else MEAN, lw=2, label=label)
