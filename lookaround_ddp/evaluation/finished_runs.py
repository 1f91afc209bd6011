"""What finished runs left: their configs, their models, and their scores measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lookaround_ddp.checkpoint import (
    BEST,
    ENDED,
    MODEL,
    RESULT,
    TRAJECTORY,
    Checkpoints,
    check_free,
    load_state,
    member_files,
    members,
    members_differ,
    read_network,
    read_result,
    save_made,
)
from lookaround_ddp.config import Config, Recipe
from lookaround_ddp.data import Dataset, open_dataset
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation.evaluator import EnsembleScore, Evaluator, Score, make_evaluator, make_evaluators
from lookaround_ddp.models import empty_model, placed

Scores = dict[str, Any]  # a Score, a list of them, or an EnsembleScore by what it is of


def shipped_file(run: Path, config: Config) -> Path:
    """Returns the file of the one network that a finished run ships.

    It is the average along time where the run made one, else the mean model.

    Raises:
        UserError: it ships an ensemble.
    """
    if config.average.k == "never":
        raise UserError(f"{run} has no single model: its replicas were never averaged (average.k=never)")
    return run / (MODEL if config.trajectory.name == "none" else TRAJECTORY)


def shipped_model(run: Path, config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network in this file, on the CPU, and the file's metadata.

    Raises:
        UserError: the run has not finished, its file is damaged, or it ships an ensemble.
    """
    return read_network(shipped_file(run, config), config.model)


def evaluate_run(run: Path, config: Config, world: World) -> Scores:
    """Returns the run's scores on the data that the config names, of everything that it left. Collective.

    The mean model's, in the end and where it was best on held-out images; the average's along time; the replicas', if
    the config asks for them or they were never averaged, from the newest checkpoint that is whole for all: as they were
    just before the last average step; the members' of an ensemble, and that of their mean prediction.

    Raises:
        UserError: the run has not finished; its model and the data have different numbers of classes.
    """
    with world.together():
        dataset = open_dataset(config.data, config.seed)
    evaluators = make_evaluators(config, dataset, world)
    scores: Scores = {}
    ended = run.name.startswith(ENDED)  # before it was made longer; the checkpoints went on with it
    if config.evaluate.replicas or (config.average.k == "never" and not ended):
        iteration, models = _replicas(run, config, dataset, world)
        last = (read_result(run) or {}).get("iterations", iteration)
        name = "replicas" if iteration == last else f"iteration {iteration}'s replicas"  # the newest file was damaged
        scores[name] = evaluators[0].replicas(models)
    scores = score_run(run, config, dataset, evaluators, world, scores)
    if (run / BEST).is_file():
        with world.together():
            model = _model(run / BEST, config, dataset, world)
        scores["best"] = evaluators[0].shared(model)
    return scores


def score_run(
    run: Path,
    config: Config,
    dataset: Dataset,
    evaluators: tuple[Evaluator, Evaluator | None],
    world: World,
    known: Scores,
) -> Scores:
    """Returns the scores of all models that a run left in its folder: what a finished run is worth. Collective.

    The end of a training and `evaluate` both call it, so that they give the same figures.

    Args:
        evaluators: of the test split, and of the held-out images if there are any.
        known: scores that are there already, such as the replicas', which are not measured again.

    Raises:
        UserError: a file is missing or damaged; a model and the data have different numbers of classes.
    """
    test, validation = evaluators
    scores: Scores = {}
    names = {"mean": MODEL} if config.trajectory.name == "none" else {"mean": MODEL, "trajectory": TRAJECTORY}
    for name, file in names.items() if config.average.k != "never" else ():
        held_out = "validation" if name == "mean" else f"{name}_validation"
        if name in known:
            scores |= {key: known[key] for key in (name, held_out) if key in known}
            continue
        with world.together():
            model = _model(run / file, config, dataset, world)
        scores[name] = test.shared(model)
        if validation is not None:
            scores[held_out] = validation.shared(model)
    scores |= known
    if member_files(config):
        with world.together():
            models = [placed(model, config.channels_last, world.device) for model in members(config, world.device)]
        if members_differ(config):
            scores["members"] = [test.shared(model) for model in models]
        if len(models) > 1:
            scores["ensemble"] = test.ensemble(models)
            if validation is not None:
                scores["ensemble_validation"] = validation.ensemble(models)
    return scores


def evaluate_ensemble(
    runs: Sequence[Path], configs: Sequence[Config], world: World, out: Path | None = None
) -> tuple[list[Score], EnsembleScore]:
    """Returns the score of each run's model, and that of their mean prediction, on the first run's data. Collective.

    A run that is an ensemble itself takes part with each of its members.

    Args:
        out: a folder to save the scores into, as a finished run's.

    Raises:
        UserError: a run has not finished; the models and the data have different numbers of classes.
    """
    first = configs[0]
    check_same_data(runs, configs)
    with world.together():
        if out is not None:
            check_free(out)
        dataset = open_dataset(first.data, first.seed)
        models = []
        for run, config in zip(runs, configs, strict=True):
            files = [read_network(path, config.model) for path in member_files(config)]
            for model, metadata in files or [shipped_model(run, config)]:
                check_classes(run, metadata["classes"], dataset)
                models.append(placed(model, first.channels_last, world.device))
    test = make_evaluator(first, dataset, dataset.test, world)
    scores, mixed = [test.shared(model) for model in models], test.ensemble(models)
    if out is not None:
        with world.together():
            if world.main:
                record = Recipe(recipe="ensemble").record()
                save_made(out, first, record, runs, configs, {"members": scores, "ensemble": mixed})
    return scores, mixed


def check_same_data(runs: Sequence[Path], configs: Sequence[Config]) -> None:
    """Raises UserError if runs saw images of another kind than the first: it is the first one's that all are shown."""
    seen = ("name", "options", "size", "mean", "std")
    for run, config in zip(runs, configs, strict=True):
        for key in seen:
            own, expected = getattr(config.data, key), getattr(configs[0].data, key)
            if own != expected:
                raise UserError(f"{run} has data.{key} {own}, and {runs[0]} has {expected}: they see other images")


def check_classes(run: Path, classes: int, dataset: Dataset) -> None:
    if classes != dataset.classes:
        raise UserError(f"the model in {run} has {classes} classes, the data has {dataset.classes}")


def _model(path: Path, config: Config, dataset: Dataset, world: World) -> nn.Module:
    """Returns the network of a file in a run's folder, on the rank's device."""
    model, metadata = read_network(path, config.model)
    check_classes(path.parent, metadata["classes"], dataset)
    return placed(model, config.channels_last, world.device)


def _replicas(run: Path, config: Config, dataset: Dataset, world: World) -> tuple[int, list[nn.Module]]:
    """Returns the iteration of the newest checkpoint in which all replicas are whole, and those of this rank from it.

    Collective.

    Raises:
        UserError: the run has not finished, has no such checkpoint, or that is of other data or another network.
    """
    with world.together():
        if not (run / RESULT).is_file():
            raise UserError(f"the run in {run} has not finished; the same train command goes on with it")
    checkpoints = Checkpoints(run, config.checkpoint.keep, world, print if world.main else lambda line: None)
    iteration = checkpoints.newest_whole([f"replica-{number}.pt" for number in world.hosted])
    models = []
    with world.together():
        state, _ = checkpoints.inspect(iteration)
        check_classes(run, state.get("classes", dataset.classes), dataset)
        for number in world.hosted:
            model = empty_model(config.model, dataset.classes, dataset.channels)
            load_state(model, checkpoints.replica_state(number, iteration), config.model, f"{run}: replica {number}")
            models.append(placed(model, config.channels_last, world.device))
    return iteration, models
