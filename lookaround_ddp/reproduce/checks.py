"""What would only be found after days of training, looked at before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookaround_ddp.checkpoint import RESULT, run_config
from lookaround_ddp.config import Config, Recipe, changed_keys, is_never_averaged, with_pipeline
from lookaround_ddp.errors import UserError
from lookaround_ddp.report import HOW, made_key, read_run, run_key, saved_values


def check_finished(run: Path, config: Config) -> None:
    """Raises UserError if there is a finished run that was trained with values which give other weights."""
    if not (run / RESULT).is_file():
        return
    found = run_config(run)
    changes = list(changed_keys(_values(found), _values(_resolved(config, found))))
    if changes:
        more = f" and {len(changes) - 1} more" if changes[1:] else ""
        raise UserError(f"{run} was trained with other values ({changes[0]}{more}): give the same ones or other --runs")


def check_made(run: Path, recipe: Recipe | None, configs: Sequence[Config]) -> None:
    """Raises UserError if what was made in a folder was made otherwise, or of other runs."""
    found = read_run(run)
    wanted = [_resolved(*each) for each in zip(configs, found.of, strict=False)]
    same = list(map(_values, found.of)) == list(map(_values, wanted))  # seeds included, which a cell's key leaves out
    if not same or len(found.of) != len(configs) or run_key(found) != made_key(recipe, wanted):
        raise UserError(f"{run} was made otherwise, or of runs with other values: delete it or give other --runs")


def _values(config: Config) -> dict[str, Any]:
    """Returns the values that decide what models a run leaves, but for how they are computed."""
    values = saved_values(config)
    for name in HOW:
        del values[name]
    return values


def _resolved(config: Config, found: Config) -> Config:
    """Returns the config with the pipeline that `auto` came to in a run."""
    if config.data.pipeline != "auto":
        return config
    return with_pipeline(config, found.data.pipeline)


def check_ingredients(file: Path, recipe: Recipe, runs: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises UserError if a recipe cannot be followed with runs of these configs."""
    try:
        if recipe.recipe == "best":
            _check_comparable(recipe.by, runs, configs)
            return
        from lookaround_ddp import evaluation  # loads what makes images, which takes seconds

        evaluation.check_same_data(runs, configs)
        if recipe.recipe == "soup":
            evaluation.check_recipe(recipe.select, runs, configs)
            _check_start(runs, configs)
    except UserError as error:
        raise UserError(f"recipe {file}: {error}") from None


def _check_comparable(by: str, runs: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises UserError unless all runs have a score by which the best one can be selected."""
    for run, config in zip(runs, configs, strict=True):
        own, first = config.data, configs[0].data
        if own.name != first.name:
            raise UserError(f"{run} has data.name {own.name}, and {runs[0]} has {first.name}: they see other images")
        if by == "test":
            continue
        if not own.validation:
            raise UserError(f"{run} has no held-out images to select by: set data.validation, or by: test")
        if is_never_averaged(config):
            raise UserError(
                f"{run} has no score on held-out images, as one network that is never averaged: leave average.k out, "
                "or say by: test"
            )
        if (own.validation, own.split_seed) != (first.validation, first.split_seed):
            raise UserError(
                f"{run} holds out other images than {runs[0]}: give them the same data.validation and data.split_seed, "
                "or say by: test"
            )


def _check_start(runs: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises UserError unless the runs have one network that starts from the same weights."""
    starts = []
    for run, config in zip(runs, configs, strict=True):
        if config.average.k == "never":
            raise UserError(f"{run} has no single model: its replicas are never averaged (average.k=never)")
        seed = config.seed if config.model.seed is None else config.model.seed
        starts.append(config.model.model_copy(update={"seed": seed}))
        if starts[-1] != starts[0]:
            raise UserError(
                f"{run} does not start from the weights that {runs[0]} starts from, so their mean is meaningless: give "
                "both the same model section, with the same model.seed"
            )
