"""`analyze trajectory` (the paper's Fig. 6): replicas that leave a common point, and their mean at every iteration."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from lookaround_ddp.analysis.continuation import Continuation, named
from lookaround_ddp.analysis.output import Numbers, Output, legend_below, plain
from lookaround_ddp.analysis.scoring import Pace, Scorer, State, default_output, described, divided
from lookaround_ddp.config import Config
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Score, mean_state

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHARES = (1.0, 0.1, 0.01)  # of the run's learning rate, where none is given


def analyze(options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], world: World) -> None:
    """From a checkpoint's mean, so many iterations of the trainer without an average step, for each learning rate."""
    if len(runs) > 1:
        raise UserError(f"one run at a time: {runs[0]} or {runs[1]}?")
    if options.iterations < 1:
        raise UserError(f"--iterations is {options.iterations}: give 1 or more")
    run, config = runs[0], configs[0]
    rates = options.lr or [share * config.optimizer.lr for share in SHARES]
    if min(rates) <= 0:
        raise UserError(f"--lr has {min(rates):g}: give learning rates greater than 0")
    with world.together():
        output = Output(default_output(options, run, "trajectory"))
    going = Continuation(run, config, world)
    with world.together():
        start = named(None if options.at is None else [options.at], going.checkpoints(), run)[-1]
        scorer = Scorer(config, going.dataset, world, options.split, options.images, options.recalibrate)
    pace = Pace(len(rates) * (options.iterations + 1), "iterations with their scores", world)
    curves: list[Numbers] = []
    for rate in rates:
        going.restore(start)
        rows, diverged = [scored(scorer, going.states(), world)], None
        pace.tick(len(curves) * (options.iterations + 1) + len(rows))
        try:
            for _ in going.train(start, options.iterations, rate):
                rows.append(scored(scorer, going.states(), world))
                pace.tick(len(curves) * (options.iterations + 1) + len(rows))
        except FloatingPointError as error:  # what was measured before it, and the other rates, are no worse for it
            diverged = f"learning rate {rate:g}: {error}"
            if world.main:
                print(diverged, flush=True)
        curve = {"lr": rate, "mean": [row[0] for row in rows], "replicas": [row[1:] for row in rows]}
        curves.append({**curve, "diverged": diverged})
    if world.main:
        numbers = {
            "run": str(run),
            "checkpoint": start,
            "iterations": options.iterations,
            "images": described(options, scorer),
            "batch_norm": "measured anew" if options.recalibrate else "averaged with the weights",
            "replicas": [", ".join(map(_name, own)) for own in config.replicas],
            "curves": curves,
        }
        _print(numbers, Console())
        _draw(numbers, output)
        output.write(numbers)
        output.say()
    if all(curve["diverged"] for curve in curves):
        raise FloatingPointError(curves[-1]["diverged"])


def scored(scorer: Scorer, states: Sequence[State], world: World) -> list[Score]:
    """The score of the states' mean, then of each. Collective."""

    def task(number: int) -> Score:
        return scorer.score(mean_state(states) if number == 0 else states[number - 1])

    return divided(1 + len(states), task, world)


def _name(entry: object) -> str:
    return entry if isinstance(entry, str) else "+".join(entry) if isinstance(entry, dict) else str(entry)


def _print(numbers: Numbers, console: Console) -> None:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for heading in ("lr", "network", "top-1 %", "at best", "NLL", "at best"):
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=True)
    for curve in numbers["curves"]:
        names = ["mean phi", *(f"replica {place}: {own}" for place, own in enumerate(numbers["replicas"]))]
        for place, name in enumerate(names):
            scores = curve["mean"] if place == 0 else [row[place - 1] for row in curve["replicas"]]
            later = scores[1:] or scores  # only where the first iteration diverged there is nothing but the start
            top1, nll = [score["top1"] for score in later], [score["nll"] for score in later]
            lowest = min(filter(math.isfinite, nll), default=math.nan)
            cells = [f"{top1[-1]:.2f}", f"{max(top1):.2f}", f"{nll[-1]:.4g}", f"{lowest:.4g}"]
            table.add_row(f"{curve['lr']:g}" if place == 0 else "", name, *cells)
    begin = numbers["curves"][0]["mean"][0]
    console.print(_titled(numbers), markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    note = (
        "At the end (or the last iteration before a rate diverged), and at the best iteration. The common point: "
        f"top-1 {begin['top1']:.2f}, NLL {begin['nll']:.4f}."
    )
    console.print(note, markup=False, highlight=False, soft_wrap=True)


def _titled(numbers: Numbers) -> str:
    return (
        f"{numbers['run']}: from the mean after iteration {numbers['checkpoint']}, no average step for "
        f"{numbers['iterations']} iterations; {numbers['images']}, batch-norm: {numbers['batch_norm']}"
    )


def _draw(numbers: Numbers, output: Output) -> None:
    from matplotlib.figure import Figure  # takes seconds to import

    curves = numbers["curves"]
    figure = Figure(figsize=(max(4.2 * len(curves), 6), 6.6), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False, sharex=True)
    for column, curve in enumerate(curves):
        for row, key in enumerate(("top1", "nll")):
            _plot(panels[row][column], curve, key, numbers["replicas"])
        after = f", diverged after {len(curve['mean']) - 1}" if curve["diverged"] else ""
        panels[0][column].set_title(f"learning rate {curve['lr']:g}{after}")
        panels[1][column].set_xlabel("iterations since the common point")
    panels[0][0].set_ylabel("top-1 (%)")
    panels[1][0].set_ylabel("NLL (nats per image)")
    legend_below(figure, panels[0][0])
    output.draw(figure, _titled(numbers))


def _plot(axes: Axes, curve: Numbers, key: str, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        values = [row[place][key] for row in curve["replicas"]]
        axes.plot(values, color=f"C{place % 10}", lw=1.2, label=plain(f"replica {place}: {name}"))
    axes.plot([score[key] for score in curve["mean"]], color="black", lw=2, label="their mean phi, never put in place")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)
