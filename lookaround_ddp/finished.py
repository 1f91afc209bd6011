"""What a finished run left: its config, its model, and its scores measured again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from lookaround_ddp.checkpoint import Checkpoints, load_model
from lookaround_ddp.config import Config, UserError, load_config
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluate import Score, make_evaluator
from lookaround_ddp.models import create_model


def run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The config that a run folder was trained with; `overrides` may say, say, where its data is now."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: there is no config.yaml in it")
    config = load_config(run / "config.yaml", overrides)
    return config.model_copy(update={"out": str(run)})  # as a value: `out=2024` would be read as a number


def mean_model(run: Path, config: Config) -> tuple[nn.Module, int]:
    """The mean model of a finished run, on the CPU, and its number of classes.

    Raises:
        UserError: the run has not finished, or its file is damaged.
    """
    state, metadata = load_model(run / "model.safetensors")
    classes, channels = metadata["classes"], metadata["channels"]
    model = create_model(config.model.model_copy(update={"pretrained": False}), classes, channels)
    model.load_state_dict(state)
    return model, classes


def evaluate_run(run: Path, config: Config, world: World) -> dict[str, Score | list[Score]]:
    """The run's scores on the data that the config names: the mean model's, and the replicas' if it kept them.

    Collective. Replicas are those of the newest checkpoint: as they were just before the last average step.
    Replicas that were never averaged have no mean model, and are evaluated alone.

    Raises:
        UserError: the run has not finished; its model and the data have different numbers of classes.
    """
    with world.together():
        dataset = open_dataset(config.data, config.seed)
    scores: dict[str, Score | list[Score]] = {}
    if config.average.k != "never":
        with world.together():
            model, classes = mean_model(run, config)
            _check_classes(run, classes, dataset)
        model = _placed(model, config, world)
        scores["mean"] = make_evaluator(config, dataset, dataset.test, world).shared(model)
        if dataset.validation is not None:
            scores["validation"] = make_evaluator(config, dataset, dataset.validation, world).shared(model)
    if config.evaluate.replicas or config.average.k == "never":
        with world.together():
            models = [_placed(model, config, world) for model in _replicas(run, config, dataset, world)]
        scores["replicas"] = make_evaluator(config, dataset, dataset.test, world).replicas(models)
    return scores


def _replicas(run: Path, config: Config, dataset: Dataset, world: World) -> Iterator[nn.Module]:
    """The replicas that this rank hosts, from the newest checkpoint."""
    if not (run / "result.json").is_file():
        raise UserError(f"the run in {run} has not finished; the same train command goes on with it")
    checkpoints = Checkpoints(run, config.checkpoint.keep, world, print)
    for iteration in checkpoints.iterations():
        state, _ = checkpoints.inspect(iteration)
        _check_classes(run, state.get("classes", dataset.classes), dataset)
    for number in world.hosted:
        model = create_model(config.model.model_copy(update={"pretrained": False}), dataset.classes, dataset.channels)
        model.load_state_dict(checkpoints.newest_model(number))
        yield model


def _check_classes(run: Path, classes: int, dataset: Dataset) -> None:
    if classes != dataset.classes:
        raise UserError(f"the model in {run} has {classes} classes, the data has {dataset.classes}")


def _placed(model: nn.Module, config: Config, world: World) -> nn.Module:
    layout = torch.channels_last if config.channels_last else torch.preserve_format
    return model.to(world.device).to(memory_format=layout)
