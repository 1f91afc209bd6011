"""Model soups: the mean of finished runs' weights (Wortsman et al., arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookaround_ddp.checkpoint import MODEL, check_free, save_made, save_model
from lookaround_ddp.config import Config, Recipe
from lookaround_ddp.data import Dataset, described, open_dataset, split_seed
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation.evaluator import Score, make_evaluator
from lookaround_ddp.evaluation.finished_runs import check_classes, check_same_data, shipped_model
from lookaround_ddp.evaluation.scorer import Scorer, State, loss_barrier
from lookaround_ddp.own_code import Code, refused

ALL_PAIRS = 5  # of more ingredients the barriers to the best one are measured, not those between all of them


PLACES = (0.25, 0.5, 0.75)  # between two ingredients, at even steps, where the loss is measured


@dataclass(frozen=True)
class Soup:
    """What was cooked: scores are on held-out images where there are any (`split` says it), else on the test set."""

    split: str
    ingredients: dict[str, Score]  # by run, in the order of the command line
    barriers: dict[tuple[str, str], float]  # NLL above the line between two ingredients, at its highest
    chosen: list[str]
    test: Score


def cook(
    runs: Sequence[Path],
    configs: Sequence[Config],
    recipe: str,
    world: World,
    *,
    update_bn: bool = False,
    code: Code = refused,
    out: Path | None = None,
) -> Soup:
    """Averages the runs' models and scores the result. Collective.

    Args:
        configs: of the runs; the first one's data and augmentations are used.
        recipe: uniform: all of them; top:N: the N best on held-out images; greedy: from the best on, each that
            makes the held-out accuracy strictly higher.
        update_bn: measure batch-norm's statistics of every mixture over the training data.
        code: what becomes of an augmentation's dotted path, with `update_bn`.
        out: a folder to save the soup into, as a finished run.

    Raises:
        UserError: an unknown recipe, runs that did not start from the same weights, or no images to select by.
    """
    with world.together():
        if out is not None:
            check_free(out)
        dataset = open_dataset(configs[0].data, configs[0].seed)
        check_same_data(runs, configs)
        check_recipe(recipe, runs, configs)
        states, start = read_ingredients(runs, configs, dataset)
    selection = dataset.test if dataset.validation is None else dataset.validation
    scorer = Scorer(configs[0], dataset, selection, world, update_bn=update_bn, code=code)
    scores = {name: scorer.score(state) for name, state in states.items()}
    ranked = sorted(states, key=lambda name: scores[name]["top1"], reverse=True)
    barriers = {
        pair: barrier_between(scorer, states[pair[0]], states[pair[1]], scores[pair[0]], scores[pair[1]])
        for pair in (combinations(states, 2) if len(states) <= ALL_PAIRS else [(ranked[0], n) for n in ranked[1:]])
    }
    chosen = choose(recipe, ranked, states, scores, scorer)
    mixture = mean_state([states[name] for name in chosen])
    test = make_evaluator(configs[0], dataset, dataset.test, world).shared(scorer.load(mixture))
    if out is not None:
        with world.together():
            if world.main:
                how = Recipe(recipe="soup", select=recipe, update_bn=update_bn)
                _save_model(out, configs[0], dataset, scorer.model, chosen, start)
                record = how.record(configs[0].evaluate.recalibrate_iterations)
                save_made(out, _config_of_mean(configs[0]), record, runs, configs, {"mean": test, "soup": chosen})
    split = "test" if dataset.validation is None else "held-out images"
    return Soup(split, scores, barriers, chosen, test)


def check_recipe(recipe: str, runs: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises UserError unless the recipe can be followed with these runs."""
    name, _, count = recipe.partition(":")
    if recipe not in ("uniform", "greedy") and not (name == "top" and count.isdecimal() and int(count) >= 1):
        raise UserError(f"recipe {recipe!r}: use uniform, greedy or top:N")
    if name == "top" and int(count) > len(runs):
        raise UserError(f"recipe {recipe}: there are only {len(runs)} runs")
    if recipe == "uniform":
        return
    for run, config in zip(runs, configs, strict=True):
        if config.data.validation == 0:
            raise UserError(
                f"recipe {recipe} selects by held-out images, and {run} held out none: set data.validation and train "
                "again, or average all of them (recipe uniform)"
            )
        if _split(config) != _split(configs[0]):
            raise UserError(
                f"recipe {recipe}: {run} held out other images than {runs[0]}, and may have trained on its: train "
                f"them with the same data.split_seed, data.validation and data.train_images"
            )


def read_ingredients(runs: Sequence[Path], configs: Sequence[Config], dataset: Dataset) -> tuple[dict[str, State], str]:
    """Reads the state dict of each run by name, on the CPU, and the digest of their common start.

    Raises:
        UserError: a run has no model, or they did not all start from the same weights.
    """
    states: dict[str, State] = {}
    starts: dict[str, str] = {}
    for run, config in zip(runs, configs, strict=True):
        model, metadata = shipped_model(run, config)
        check_classes(run, metadata["classes"], dataset)
        name = str(run)
        if run.resolve() in [Path(other).resolve() for other in states]:
            raise UserError(f"{run} is named twice")
        states[name] = {key: value.clone() for key, value in model.state_dict().items()}  # the network is used again
        starts[name] = metadata["start"]  # a soup's is that of its ingredients
        if starts[name] != starts[str(runs[0])]:
            raise UserError(
                f"{run} and {runs[0]} did not start from the same weights (head included), so their mean is "
                f"meaningless: train them with the same model section and the same model.seed"
            )
    return states, starts[str(runs[0])]


def barrier_between(scorer: Scorer, one: State, other: State, score: Score, other_score: Score) -> float:
    """Measures the loss barrier (NLL) between two states whose scores are known."""
    between = [scorer.score(mean_state([one, other], [1 - place, place]))["nll"] for place in PLACES]
    return loss_barrier([score["nll"], *between, other_score["nll"]])


def choose(
    recipe: str, ranked: Sequence[str], states: Mapping[str, State], scores: Mapping[str, Score], scorer: Scorer
) -> list[str]:
    """Returns the names of the ingredients that the recipe takes. `ranked`: from the best on held-out images down."""
    if recipe == "uniform":
        return list(states)
    if recipe != "greedy":
        return list(ranked[: int(recipe.partition(":")[2])])
    chosen, best = [ranked[0]], scores[ranked[0]]["top1"]
    for name in ranked[1:]:
        top1 = scorer.score(mean_state([states[each] for each in [*chosen, name]]))["top1"]
        if top1 > best:
            chosen, best = [*chosen, name], top1
    return chosen


def mean_state(states: Sequence[State], weights: Sequence[float] | None = None) -> State:
    """Returns the weighted mean of floating-point tensors, in fp64 and rounded once; others are the first state's."""
    weights = weights or [1 / len(states)] * len(states)
    mean: State = {}
    for name, first in states[0].items():
        mean[name] = first.clone()
        if first.is_floating_point():
            total = torch.zeros_like(first, dtype=torch.float64)
            for state, weight in zip(states, weights, strict=True):
                total += weight * state[name].double()
            mean[name].copy_(total)
    return mean


def _split(config: Config) -> tuple[Any, ...]:
    data = config.data
    return data.name, data.train_images, data.validation, split_seed(data, config.seed)


def _config_of_mean(config: Config) -> Config:
    """Returns the config of one network that is a mean, from that of its first ingredient."""
    evaluate = config.evaluate.model_copy(update={"replicas": False})
    return config.model_copy(update={"trajectory": type(config.trajectory)(), "snapshots": False, "evaluate": evaluate})


def _save_model(
    out: Path, config: Config, dataset: Dataset, model: nn.Module, chosen: Sequence[str], start: str
) -> None:
    """Saves the soup so that `evaluate`, `ensemble` and `soup` read it like a finished run's model."""
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"soup": list(chosen), "start": start, "config": _config_of_mean(config).identity()}
    save_model(out / MODEL, model.state_dict(), described(dataset) | metadata)
