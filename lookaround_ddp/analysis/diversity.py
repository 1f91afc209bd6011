"""`analyze diversity`: how far apart the replicas get in a round, and whether they stay where a mean makes sense."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lookaround_ddp.analysis.arguments import select_checkpoints
from lookaround_ddp.analysis.continuation import Continuation
from lookaround_ddp.analysis.output import Numbers, Output, empty_figure
from lookaround_ddp.analysis.scoring import (
    code_of,
    default_output,
    describe_images,
    lone_scorer,
    map_over_ranks,
    parameters_of,
)
from lookaround_ddp.averaging import NotFiniteError
from lookaround_ddp.config import Config, k_text
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Scorer, State, loss_barrier, mean_state
from lookaround_ddp.files import regular
from lookaround_ddp.tables import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LINE_PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)  # between two replicas, where the loss is measured


def analyze_diversity(
    options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], world: World
) -> None:
    """Trains rounds from a run's checkpoints on, and measures each just before its average step."""
    if len(runs) > 1:
        raise UserError(f"one run at a time: {runs[0]} or {runs[1]}?")
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}: give 1 or more")
    if options.lr is not None and options.lr <= 0:
        raise UserError(f"--lr is {options.lr:g}: give more than 0")
    run, config = runs[0], configs[0]
    with world.together():
        output = Output(default_output(options, run, "diversity"))
    going = Continuation(run, config, world, code_of(options))
    with world.together():
        starts = select_checkpoints(options.at, going.checkpoints(), run)
        scorer = lone_scorer(
            config, going.dataset, world, options.split, options.images, options.recalibrate, code_of(options)
        )
    rows: list[Numbers] = []
    diverged: list[str] = []
    for start in starts:
        going.restore(start)
        end = start
        try:
            for number in range(options.rounds):
                phi, first = going.states()[0], end
                end = first + going.length(first)
                for iteration in going.train(first, end - first, options.lr):
                    world.does(f"continuing after iteration {iteration}")
                row = {"from": start, "round": number + 1, "iteration": end}
                row |= measure_round(scorer, going.states(), phi, world)
                if world.main:
                    print(f"checkpoint {start}, round {number + 1}: {_row_text(row)}", flush=True)
                rows.append(row)
                going.average()
        except NotFiniteError as error:  # the other rounds are no worse for it
            diverged.append(f"from checkpoint {start}: {error}")
            if world.main:
                print(diverged[-1], flush=True)
    if not rows:
        raise NotFiniteError(diverged[-1])
    if world.main:
        numbers = {
            "run": str(run),
            "images": describe_images(options, scorer),
            "k": k_text(config.average.k) if isinstance(config.average.k, tuple) else going.length(0),
            "replicas": world.replicas,
            "lr": options.lr if options.lr is not None else "the run's schedule",
            "batch_norm": "measured anew" if options.recalibrate else "averaged with the weights",
            "diverged": diverged,
            "rounds": rows,
        }
        _print_diversity(numbers)
        _draw_diversity(numbers, _distances(run), output)
        output.write(numbers)


def measure_round(scorer: Scorer, states: Sequence[State], start: State, world: World) -> Numbers:
    """Measures how far apart the replicas are at the end of a round that began at `start`. Collective.

    Returns:
        distance: L2 norm from each replica's parameters to the replicas' mean phi. cosine: between the displacements
        of each pair from the round's start. disagreement: the share of images that a pair predicts differently, in
        percent. barrier: the highest NLL above the straight line between a pair's, in nats.
    """
    mean = mean_state(states)
    vectors = [parameters_of(scorer.model, state) for state in states]
    center, origin = parameters_of(scorer.model, mean), parameters_of(scorer.model, start)
    pairs = list(combinations(range(len(states)), 2))
    between = LINE_PLACES[1:-1]

    def task(number: int) -> Any:
        """Scores the mean, then each replica, with its predictions, then the places between the pairs."""
        if number == 0:
            return scorer.score(mean)
        if number <= len(states):
            state = states[number - 1]
            return scorer.score(state), scorer.predictions(state)
        pair, place = divmod(number - 1 - len(states), len(between))
        one, other = (states[each] for each in pairs[pair])
        return scorer.score(mean_state([one, other], [1 - between[place], between[place]]))["nll"]

    found = map_over_ranks(1 + len(states) + len(pairs) * len(between), task, world)
    scores, predictions = zip(*found[1 : 1 + len(states)], strict=True)
    lines = np.array(found[1 + len(states) :], dtype=float).reshape(len(pairs), len(between))
    ends = [(scores[one]["nll"], scores[other]["nll"]) for one, other in pairs]
    return {
        "distance": [float((vector - center).norm()) for vector in vectors],
        "pairs": [list(pair) for pair in pairs],
        "cosine": [cosine(vectors[one] - origin, vectors[other] - origin) for one, other in pairs],
        "disagreement": [100 * float((predictions[i] != predictions[j]).double().mean()) for i, j in pairs],
        "barrier": [
            loss_barrier([first, *line, last]) for (first, last), line in zip(ends, lines.tolist(), strict=True)
        ],
        "mean": found[0],
        "replica_scores": list(scores),
    }


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the cosine of two vectors; NaN if one of them is zero, as of a replica that has not moved."""
    return float(one @ other / (one.norm() * other.norm()))


def _row_text(row: Numbers) -> str:
    means = {name: float(np.mean(row[name])) for name in ("distance", "cosine", "disagreement", "barrier")}
    return (
        f"distance to phi {means['distance']:.4g}, cosine {means['cosine']:.3f}, "
        f"disagreement {means['disagreement']:.2f} %, barrier {means['barrier']:.4f}"
    )


def _print_diversity(numbers: Numbers) -> None:
    table = []
    for row in numbers["rounds"]:
        means = [float(np.mean(row[name])) for name in ("distance", "cosine", "disagreement", "barrier")]
        nll = float(np.mean([score["nll"] for score in row["replica_scores"]]))
        cells = [f"{means[0]:.4g}", f"{means[1]:.3f}", f"{means[2]:.2f}", f"{means[3]:.4f}"]
        table.append([str(row["iteration"]), *cells, f"{nll:.4f}", f"{row['mean']['nll']:.4f}"])
    print(_diversity_title(numbers))
    print_table(("end", "distance", "cosine", "disagree %", "barrier", "NLL, replicas", "NLL, phi"), table, left=())
    print(
        "At the end of a round, before its average step: means over replicas, or pairs of them. Barrier: NLL above the "
        "straight line between two replicas' (negative: below it everywhere)."
    )


def _diversity_title(numbers: Numbers) -> str:
    rate = numbers["lr"] if isinstance(numbers["lr"], str) else f"learning rate {numbers['lr']:g}"
    return (
        f"{numbers['run']}: {numbers['replicas']} replicas, k = {numbers['k']}, {rate}; {numbers['images']}, "
        f"batch-norm: {numbers['batch_norm']}"
    )


def _distances(run: Path) -> list[tuple[int, list[float]]]:
    """Reads (iteration, each replica's distance to phi) of the run itself from its record."""
    path, found = run / "metrics.jsonl", []
    for text in regular(path).read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):  # a line that a killed run left half written
            line = json.loads(text)
            if line.get("distance") is not None:
                found.append((line["iteration"], line["distance"]))
    return found


def _draw_diversity(numbers: Numbers, recorded: Sequence[tuple[int, list[float]]], output: Output) -> None:
    figure = empty_figure(11, 7)
    distance, angle, disagreement, height = figure.subplots(2, 2).flat
    rows = numbers["rounds"]
    if recorded:
        iterations = [iteration for iteration, _ in recorded]
        for number, values in enumerate(zip(*(each for _, each in recorded), strict=True)):
            label = "while the run trained" if number == 0 else None
            distance.plot(iterations, values, color=f"C{number}", lw=0.8, alpha=0.5, label=label)
    names = [f"replica {number}" for number in range(numbers["replicas"])]
    _plot_rounds(distance, rows, [row["distance"] for row in rows], names)
    names = [f"replicas {one} and {other}" for one, other in rows[0]["pairs"]]
    for axes, key in ((angle, "cosine"), (disagreement, "disagreement"), (height, "barrier")):
        _plot_rounds(axes, rows, [row[key] for row in rows], names)
    distance.set(title="distance to the mean phi", ylabel="L2 norm over all parameters", ylim=(0, None))
    angle.set(title="directions of two replicas from the round's start", ylabel="cosine of their displacements")
    angle.axhline(0, color="black", lw=0.8)
    disagreement.set(title="predictions that differ", ylabel="% of the images", ylim=(0, None))
    height.set(title="barrier on the line between two replicas", ylabel="NLL above the line of the ends (nats)")
    height.axhline(0, color="black", lw=0.8)
    for axes in (distance, angle, disagreement, height):
        axes.set_xlabel("iteration, at a round's end")
        axes.grid(alpha=0.3)
        if len(axes.lines) < 16:
            axes.legend(fontsize=8)
    output.draw(figure, _diversity_title(numbers))


def _plot_rounds(axes: Axes, rows: Sequence[Numbers], values: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Draws a curve for each name; if several rounds follow a checkpoint, with a gap before the next checkpoint."""
    several = any(row["round"] > 1 for row in rows)
    for place, name in enumerate(names):
        xs: list[float] = []
        ys: list[float] = []
        for number, row in enumerate(rows):
            if several and number and row["round"] == 1:
                xs.append(row["iteration"])
                ys.append(float("nan"))
            xs.append(row["iteration"])
            ys.append(values[number][place])
        axes.plot(xs, ys, "o-", ms=3, color=f"C{place % 10}", label=name)
