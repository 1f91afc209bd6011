"""`analyze trajectory` (the paper's Fig. 6): replicas that leave a common point, and their mean at every iteration."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lookaround_ddp.analysis.arguments import select_checkpoints
from lookaround_ddp.analysis.continuation import Continuation
from lookaround_ddp.analysis.output import Numbers, Output, empty_figure, legend_below, without_formulas
from lookaround_ddp.analysis.scoring import Pace, code_of, default_output, describe_images, lone_scorer, map_over_ranks
from lookaround_ddp.averaging import NotFiniteError
from lookaround_ddp.config import Config
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Score, Scorer, State, mean_state
from lookaround_ddp.tables import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHARES = (1.0, 0.1, 0.01)  # of the run's learning rate, where none is given


def analyze_trajectory(
    options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], world: World
) -> None:
    """Trains on from a checkpoint's mean without average steps, and scores each iteration, for each learning rate."""
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
    going = Continuation(run, config, world, code_of(options))
    with world.together():
        start = select_checkpoints(None if options.at is None else [options.at], going.checkpoints(), run)[-1]
        scorer = lone_scorer(
            config, going.dataset, world, options.split, options.images, options.recalibrate, code_of(options)
        )
    pace = Pace(len(rates) * (options.iterations + 1), "iterations with their scores", world)
    curves: list[Numbers] = []
    for rate in rates:
        going.restore(start)
        rows, diverged = [score_states(scorer, going.states(), world)], None
        pace.tick(len(curves) * (options.iterations + 1) + len(rows))
        try:
            for _ in going.train(start, options.iterations, rate):
                rows.append(score_states(scorer, going.states(), world))
                pace.tick(len(curves) * (options.iterations + 1) + len(rows))
        except NotFiniteError as error:  # the iterations before it and the other rates are still good
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
            "images": describe_images(options, scorer),
            "batch_norm": "measured anew" if options.recalibrate else "averaged with the weights",
            "replicas": [", ".join(map(_entry_name, own)) for own in config.replicas],
            "curves": curves,
        }
        _print_trajectory(numbers)
        _draw_trajectory(numbers, output)
        output.write(numbers)
    if all(curve["diverged"] for curve in curves):
        raise NotFiniteError(curves[-1]["diverged"])


def score_states(scorer: Scorer, states: Sequence[State], world: World) -> list[Score]:
    """Returns the score of the states' mean, then of each state. Collective."""

    def task(number: int) -> Score:
        return scorer.score(mean_state(states) if number == 0 else states[number - 1])

    return map_over_ranks(1 + len(states), task, world)


def _entry_name(entry: object) -> str:
    return entry if isinstance(entry, str) else "+".join(entry) if isinstance(entry, dict) else str(entry)


def _print_trajectory(numbers: Numbers) -> None:
    table = []
    for curve in numbers["curves"]:
        names = ["mean phi", *(f"replica {place}: {own}" for place, own in enumerate(numbers["replicas"]))]
        for place, name in enumerate(names):
            scores = curve["mean"] if place == 0 else [row[place - 1] for row in curve["replicas"]]
            later = scores[1:] or scores  # if the first iteration diverged, there is only the start
            top1, nll = [score["top1"] for score in later], [score["nll"] for score in later]
            lowest = min(filter(math.isfinite, nll), default=math.nan)
            cells = [f"{top1[-1]:.2f}", f"{max(top1):.2f}", f"{nll[-1]:.4g}", f"{lowest:.4g}"]
            table.append([f"{curve['lr']:g}" if place == 0 else "", name, *cells])
    begin = numbers["curves"][0]["mean"][0]
    print(_trajectory_title(numbers))
    print_table(("lr", "network", "top-1 %", "at best", "NLL", "at best"), table, left=(1,))
    print(
        "At the end (or the last iteration before a rate diverged), and at the best iteration. The common point: "
        f"top-1 {begin['top1']:.2f}, NLL {begin['nll']:.4f}."
    )


def _trajectory_title(numbers: Numbers) -> str:
    return (
        f"{numbers['run']}: from the mean after iteration {numbers['checkpoint']}, no average step for "
        f"{numbers['iterations']} iterations; {numbers['images']}, batch-norm: {numbers['batch_norm']}"
    )


def _draw_trajectory(numbers: Numbers, output: Output) -> None:
    curves = numbers["curves"]
    figure = empty_figure(max(4.2 * len(curves), 6), 6.6)
    panels = figure.subplots(2, len(curves), squeeze=False, sharex=True)
    for column, curve in enumerate(curves):
        for row, key in enumerate(("top1", "nll")):
            _plot_scores(panels[row][column], curve, key, numbers["replicas"])
        after = f", diverged after {len(curve['mean']) - 1}" if curve["diverged"] else ""
        panels[0][column].set_title(f"learning rate {curve['lr']:g}{after}")
        panels[1][column].set_xlabel("iterations since the common point")
    panels[0][0].set_ylabel("top-1 (%)")
    panels[1][0].set_ylabel("NLL (nats per image)")
    legend_below(figure, panels[0][0])
    output.draw(figure, _trajectory_title(numbers))


def _plot_scores(axes: Axes, curve: Numbers, key: str, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        values = [row[place][key] for row in curve["replicas"]]
        axes.plot(values, color=f"C{place % 10}", lw=1.2, label=without_formulas(f"replica {place}: {name}"))
    axes.plot([score[key] for score in curve["mean"]], color="black", lw=2, label="their mean phi, never put in place")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)
