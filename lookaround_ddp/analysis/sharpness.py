"""`analyze sharpness`: how flat the minima are that runs have found, which the paper claims and does not measure."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from lookaround_ddp import seeds
from lookaround_ddp.analysis.hessian import hessian_vector_product, top_eigenvalue
from lookaround_ddp.analysis.output import Numbers, Output, empty_figure, legend_below, short_names, without_formulas
from lookaround_ddp.analysis.scoring import (
    code_of,
    default_output,
    describe_images,
    lone_scorer,
    map_over_ranks,
    shipped_states,
)
from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, load, open_on_all_ranks
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Scorer, State, evaluating
from lookaround_ddp.tables import print_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Probe = tuple[int, int | None, float]  # run, direction (None: the minimum itself), radius


def analyze_sharpness(
    options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], world: World
) -> None:
    """Scores each run's network at random places around it, and measures its Hessian's largest eigenvalue."""
    _check_sharpness_options(options)
    config, dataset = configs[0], open_on_all_ranks(configs[0], world)
    with world.together():
        output = Output(default_output(options, runs[0], "sharpness"))
        states = shipped_states(runs, configs, dataset, world)
        scorer = lone_scorer(
            config, dataset, world, options.split, options.images, options.recalibrate, code_of(options)
        )
    radii = [options.radius * (step + 1) / options.steps for step in range(options.steps)]
    places: list[Probe] = [(run, None, 0.0) for run in range(len(runs))]
    places += [(run, way, radius) for radius in radii for way in range(options.directions) for run in range(len(runs))]

    def score(number: int) -> Numbers:
        run, way, radius = places[number]
        if way is None:
            return scorer.score(states[run])
        direction = filter_normalized(scorer.model, states[run], options.seed, way)
        return scorer.score(perturb(states[run], direction, radius))

    scores = map_over_ranks(len(places), score, world, "scores")
    rows = {str(run): _sharpness_row(number, places, scores) for number, run in enumerate(runs)}
    if options.hessian_images:
        with world.together():
            hessian = lone_scorer(
                config, dataset, world, "train", options.hessian_images, options.recalibrate, code_of(options)
            )
        found = map_over_ranks(len(runs), lambda run: eigenvalue(hessian, states[run], options), world, "eigenvalues")
        for row, each in zip(rows.values(), found, strict=True):
            row["hessian"] = each
    if world.main:
        numbers = {
            "images": describe_images(options, scorer),
            "directions": options.directions,
            "seed": options.seed,
            "batch_norm": "measured anew" if options.recalibrate else "the network's own statistics",
            "runs": rows,
        }
        _print_sharpness(numbers)
        _draw_sharpness(numbers, output)
        output.write(numbers)


def filter_normalized(model: nn.Module, state: State, seed: int, number: int) -> State:
    """Draws a random direction in which each filter is as long as the network's own (Li et al., arXiv 1712.09913).

    A filter makes one output of a convolution or linear layer. Parameters of one dimension (biases, norm layers) have
    no part in the direction. Networks of one structure get the same draws.
    """
    generator = torch.Generator().manual_seed(seeds.derive(seed, number))
    direction: State = {}
    drawn: dict[nn.Parameter, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied ones move together
        if parameter.dim() > 1 and parameter.is_floating_point():
            own, rest = state[name].double(), tuple(range(1, parameter.dim()))
            if parameter not in drawn:
                drawn[parameter] = torch.randn(own.shape, generator=generator, dtype=torch.float64)
            norms = [torch.linalg.vector_norm(each, dim=rest, keepdim=True) for each in (own, drawn[parameter])]
            direction[name] = drawn[parameter] * (norms[0] / norms[1])
    return direction


def perturb(state: State, direction: State, radius: float) -> State:
    """Returns the state with `radius` times the direction added."""
    return {
        name: (value.double() + radius * direction[name]).to(value.dtype) if name in direction else value
        for name, value in state.items()
    }


def eigenvalue(scorer: Scorer, state: State, options: argparse.Namespace) -> Numbers:
    """Measures the largest eigenvalue of the mean cross-entropy's Hessian over the scorer's images.

    The network is in evaluation mode, in fp32. residual: |H v - lambda v| / |lambda| for the unit eigenvector v.
    """
    model = scorer.load(state)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = scorer.evaluator.batches

    def losses() -> list[Callable[[], Tensor]]:
        made = list(load(batches, range(len(batches)), scorer.evaluator.workers, scorer.world.device))
        count = sum(len(batch.labels) for batch in made)  # images that can be read
        return [partial(_loss, scorer, model, batch, count) for batch in made if len(batch.images)]

    def product(vector: Tensor) -> Tensor:
        with evaluating(model), sdpa_kernel(SDPBackend.MATH):  # faster kernels of attention cannot be derived twice
            return hessian_vector_product(losses, parameters, vector)

    size = sum(parameter.numel() for parameter in parameters)
    value, vector, products = top_eigenvalue(product, size, options.tolerance, options.seed)
    residual = float((product(vector) - value * vector).norm()) / abs(value) if value else 0.0
    return {"top_eigenvalue": value, "residual": residual, "products": products, "training_images": len(batches.split)}


def _loss(scorer: Scorer, model: nn.Module, batch: Batch, count: int) -> Tensor:
    labels = batch.labels.to(scorer.world.device)
    return cross_entropy(model(scorer.normalize(batch.images)), labels, reduction="sum") / count


def _check_sharpness_options(options: argparse.Namespace) -> None:
    for name in ("steps", "directions"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: give 1 or more")
    for name in ("radius", "tolerance"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} is {getattr(options, name):g}: give more than 0")
    if options.hessian_images < 0:
        raise UserError(f"--hessian-images is {options.hessian_images}: give 1 or more, or 0 for no Hessian")


def _sharpness_row(run: int, places: Sequence[Probe], scores: Sequence[Numbers]) -> Numbers:
    """Collects a run's scores: the one at its minimum, and at each radius those in all directions."""
    own = [(place, score) for place, score in zip(places, scores, strict=True) if place[0] == run]
    radii = sorted({radius for (_, way, radius), _ in own if way is not None})
    at = {radius: [score for (_, way, each), score in own if each == radius and way is not None] for radius in radii}
    return {
        "score": own[0][1],
        "radii": radii,
        "nll": [[score["nll"] for score in at[radius]] for radius in radii],
        "top1": [[score["top1"] for score in at[radius]] for radius in radii],
    }


def _print_sharpness(numbers: Numbers) -> None:
    radii = next(iter(numbers["runs"].values()))["radii"]
    shown = sorted({0, len(radii) // 2, len(radii) - 1})
    headings = ["mean NLL at radius", "0", *(f"{radii[place]:g}" for place in shown), "top eigenvalue"]
    table = []
    for name, row in numbers["runs"].items():
        hessian = f"{row['hessian']['top_eigenvalue']:.4g}" if "hessian" in row else ""
        means = [f"{np.mean(row['nll'][place]):.4f}" for place in shown]
        table.append([name, f"{row['score']['nll']:.4f}", *means, hessian])
    print_table(headings, table, wrapped=(0,))
    print(
        f"{numbers['images']}; {numbers['directions']} random directions, the same for all, filter-normalized: at "
        "radius 1 each filter is moved by its own norm."
    )
    print(
        "The eigenvalue is of the training loss. It is no measure across scales: batch-norm makes weights of any size "
        "the same function, and larger ones flatter."
    )


def _draw_sharpness(numbers: Numbers, output: Output) -> None:
    hessian = all("hessian" in row for row in numbers["runs"].values())
    figure = empty_figure(13 if hessian else 9, 4.2)
    axes = figure.subplots(1, 3 if hessian else 2)
    names = short_names(list(numbers["runs"]))
    for place, (name, row) in enumerate(zip(names, numbers["runs"].values(), strict=True)):
        for key, panel in (("nll", axes[0]), ("top1", axes[1])):
            _plot_profile(panel, row, key, f"C{place % 10}", without_formulas(name))
    if hessian:
        _draw_eigenvalues(axes[2], numbers["runs"])
    axes[0].set(title="loss", ylabel="NLL (nats per image)")
    axes[1].set(title="accuracy", ylabel="top-1 (%)")
    for panel in axes[:2]:
        panel.set_xlabel("radius (1: each filter moved by its own norm)")
        panel.grid(alpha=0.3)
    legend_below(figure, axes[0])
    title = f"random filter-normalized perturbation: mean and range of {numbers['directions']} directions; "
    output.draw(figure, f"{title}{numbers['images']}, batch-norm: {numbers['batch_norm']}")


def _plot_profile(axes: Axes, row: Numbers, key: str, color: str, label: str) -> None:
    radii = [0.0, *row["radii"]]
    values = [[row["score"][key]], *row[key]]
    finite = [[each for each in some if math.isfinite(each)] or [math.nan] for some in values]
    axes.plot(radii, [np.mean(some) for some in finite], "o-", ms=3, color=color, label=label)
    axes.fill_between(
        radii, [min(some) for some in finite], [max(some) for some in finite], color=color, alpha=0.15, lw=0
    )


def _draw_eigenvalues(axes: Axes, rows: Numbers) -> None:
    """Draws a bar for each run, in the colour that it has in the legend."""
    values = [row["hessian"]["top_eigenvalue"] for row in rows.values()]
    bars = axes.bar(range(len(values)), values, color=[f"C{place % 10}" for place in range(len(values))])
    axes.bar_label(bars, [f"{value:.3g}" for value in values])
    axes.set_xticks([])
    images = next(iter(rows.values()))["hessian"]["training_images"]
    axes.set(title="largest eigenvalue of the Hessian", ylabel=f"of the NLL on {images:,} training images")
    axes.margins(y=0.1)
