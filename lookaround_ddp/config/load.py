"""YAML files and key=value pairs -> one valid `Config`, or a cell of another kind; a mistake is one line that names
the mend.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from lookaround_ddp.config.extend import check_spans
from lookaround_ddp.config.read import read_file, replace_values
from lookaround_ddp.config.recipe import Recipe, check_recipe_file
from lookaround_ddp.config.rounds import check_k, check_length_of_round, k_text
from lookaround_ddp.config.schema import Config
from lookaround_ddp.config.shipped import find_config
from lookaround_ddp.config.sweep import Point, Sweep, check_selection, combinations
from lookaround_ddp.config.update import check_update
from lookaround_ddp.errors import UserError, nearest, shortened

Schema = TypeVar("Schema", bound=BaseModel)


RECIPE, SWEEP = "recipe", "sweep"  # the keys by which files that are no configs are told


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a YAML file (None: the defaults, handwritten digits) with `key.path=value` pairs on top.

    A file may name others as its `base`, one or a list; later ones replace values of earlier ones, and the file
    replaces all of theirs. Sections are merged key by key, lists and other values are replaced. A sweep is a config
    once every key that it sweeps has a value among the pairs.

    Raises:
        UserError: naming the file, the key, or the value, and what would be right.
    """
    cell = load_cell(path, overrides) if path is not None else _config({}, overrides)
    if isinstance(cell, Config):
        return cell
    if isinstance(cell, Recipe):
        raise UserError(f"{path} is a recipe, which trains nothing: `reproduce {path}` makes what it names, and it")
    left = [key for key in cell.keys if key not in cell.given]
    if left:
        values = " ".join(f"{key}=VALUE" for key in left)
        raise UserError(f"{path} is a sweep: `reproduce {path}` trains all its points; for one of them add {values}")
    return cell.points[0].config


def load_cell(path: str | Path, overrides: Sequence[str] = ()) -> Config | Recipe | Sweep:
    """Returns what a YAML file describes: a run, what is made of others' runs, or a sweep.

    The pairs are for configs: they change nothing in a recipe. A swept key that is among them has that value alone.

    Raises:
        UserError: as `load_config` does; also for each point of a sweep, and for cells that a recipe names and that
            are not there.
    """
    path = find_config(Path(path))
    values = read_file(path)
    if RECIPE in values:
        recipe = validated(Recipe, values, f"recipe {path}: ")
        check_recipe_file(recipe, path)
        return recipe
    section = values.pop(SWEEP, None)
    return _config(values, overrides) if section is None else _sweep(section, values, overrides, path)


def load_ingredients(
    recipe: Recipe, path: str | Path, overrides: Sequence[str] = ()
) -> list[tuple[Path, Config | Sweep]]:
    """Returns the files of the cells that the recipe in the file `path` names, and what they describe.

    Raises:
        UserError: one of them is a recipe, too, or what `load_cell` raises.
    """
    found: list[tuple[Path, Config | Sweep]] = []
    for file in recipe.files(Path(path)):
        cell = load_cell(file, overrides)
        if isinstance(cell, Recipe):
            raise UserError(f"recipe {path}: {file} is a recipe, too: name what that is made of")
        found.append((file, cell))
    return found


def _config(values: dict[str, Any], overrides: Sequence[str]) -> Config:
    replace_values(values, overrides)
    return make_config(values)


def _sweep(section: Any, values: dict[str, Any], overrides: Sequence[str], path: Path) -> Sweep:
    points = []
    for name, own in combinations(section, overrides, path):
        try:
            config = _config(copy.deepcopy(values), [*overrides, *own])
        except UserError as error:
            raise UserError(f"sweep {path}, {' '.join(own)}: {error}") from None
        points.append(Point(name, own, config))
    check_selection({point.name: point.config for point in points}, path)
    keys = tuple(section)
    given = {pair.partition("=")[0] for pair in overrides}
    return Sweep(keys, tuple(key for key in keys if key in given), tuple(points))


def make_config(values: Mapping[str, Any]) -> Config:
    """Raises UserError: naming the value and what would be right."""
    config = validated(Config, values)
    _check_config(config)
    return config


def validated(kind: type[Schema], values: Mapping[str, Any], where: str = "") -> Schema:
    """Returns the section of these values; raises UserError, which begins with `where`, if one does not fit."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(where + _explain(error, kind)) from None


def _check_config(config: Config) -> None:
    """Checks what one field alone cannot tell."""
    if not config.replicas or not all(own and all(own) for own in config.replicas):
        raise UserError(
            "replicas: give at least one replica, and each at least one augmentation ('none' for no change)"
        )
    check_k(config.average.k)
    if config.average.nodes is not None:
        check_length_of_round(config.average.nodes.k, "average.nodes.k is")
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise UserError("schedule.milestones is empty: multistep needs the epochs at which the rate falls")
    check_spans(config)
    check_update(config)
    if (config.data.mean is None) != (config.data.std is None):
        raise UserError("data.mean and data.std go together: set both or neither")
    _check_method(config)
    if config.iterations is None:
        check_length(config, config.epochs)
    else:
        check_cycles(config, config.iterations)


def check_cycles(config: Config, iterations: int) -> None:
    """Raises UserError if a run of so many iterations is too short for the snapshots that it is to keep."""
    cycles = config.schedule.cycles
    if config.snapshots and cycles > iterations:
        raise UserError(f"schedule.cycles is {cycles}: the run has no more than {iterations} iterations")


def check_length(config: Config, epochs: float) -> None:
    """Raises UserError unless what a config says of the course of a run comes before its end.

    Args:
        epochs: in the whole run; of one whose length is in iterations, known when its data is.
    """
    average, trajectory, warmup = config.average, config.trajectory, config.schedule.warmup_epochs
    last = average.k[-1] if isinstance(average.k, tuple) else (0.0, average.k)
    if last[0] >= epochs:
        raise UserError(f"average.k is {last[1]} from epoch {last[0]:g} on: a run of {epochs:g} epochs ends before")
    if warmup >= epochs:
        raise UserError(f"schedule.warmup_epochs is {warmup}: it must end before epoch {epochs:g}")
    if average.before_start != "replicas" and (average.k == "never" or not 0 < average.start < epochs):
        raise UserError(
            f"average.before_start={average.before_start} needs average.start between 0 and the run's "
            f"{epochs:g} epochs (it is {average.start:g}), and rounds (average.k is {k_text(average.k)})"
        )
    if trajectory.name != "none" and trajectory.start >= epochs:
        raise UserError(
            f"trajectory.start is {trajectory.start:g}: a run of {epochs:g} epochs ends before the average begins"
        )


def _check_method(config: Config) -> None:
    """Parts that do not go together, or would never come to anything."""
    average, trajectory = config.average, config.trajectory
    if trajectory.name == "swad" and config.data.validation == 0:
        raise UserError("trajectory.name=swad selects by the loss on held-out images: set data.validation")
    if trajectory.swa_lr is not None and trajectory.name != "swa":
        raise UserError(f"trajectory.swa_lr is for swa, not for {trajectory.name}: set trajectory.name=swa")
    if average.delay and (trajectory.name != "none" or config.optimizer.lookahead is not None):
        other = "an average along time" if trajectory.name != "none" else "optimizer.lookahead"
        raise UserError(f"{other} needs the mean when a round ends, not later: set average.delay=0")
    if average.outer is not None and (average.k == "never" or average.delay or len(config.replicas) == 1):
        other = f"average.k={average.k}" if average.k == "never" else f"average.delay={average.delay}"
        other = other if len(config.replicas) > 1 else "one replica (optimizer.lookahead is for that)"
        raise UserError(f"average.outer moves the mean of replicas when a round ends, so not with {other}")
    if config.snapshots and (config.schedule.name != "cosine" or config.schedule.cycles < 2 or average.k == "never"):
        raise UserError(
            "snapshots are models at the ends of cosine cycles: set schedule.name=cosine, schedule.cycles of at "
            "least 2, and an average.k other than never"
        )


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    errors = error.errors(include_url=False)
    first, location = errors[0], _location(errors[0])
    if location[:2] != ["average", "k"]:  # which has a message of its own
        same = [each for each in errors if _location(each)[: len(location)] == location]
        first = min(same, key=lambda each: each["type"].endswith("_type"))  # of a union, the member that it is meant as
        location = _location(first)
    if first["type"] == "extra_forbidden":
        *sections, name = map(str, location)
        section = kind
        for part in sections:
            annotation: Any = section.model_fields[part].annotation
            section = (get_args(annotation) or [annotation])[0]  # of `Section | None`, the section
        elsewhere = [] if sections else keys_named(name, kind)
        hint = nearest(name, section.model_fields, "known here:")
        if elsewhere:
            hint = f"did you mean {' or '.join(elsewhere)}?"
        elif sections:
            hint = hint.replace("did you mean ", f"did you mean {'.'.join(sections)}.")
        return f"unknown key {shortened('.'.join(map(str, location)))}: {hint}"
    message = first["msg"].replace("tuple", "list").removeprefix("Input ").removeprefix("Value error, ")
    if location[:2] == ["average", "k"]:
        message = 'it should be an integer, epoch, "10 epochs" or never; or a list such as [[0, epoch], [100, 5]]'
    if first["type"] == "missing":
        return f"{'.'.join(map(str, location))} is missing"
    where, value = shortened(".".join(map(str, location))), shortened(repr(first["input"]))
    return f"{where} is {value}: {message}"


def keys_named(name: str, kind: type[BaseModel] = Config) -> list[str]:
    """Returns the keys of a config that have this name, there or in a section: optimizer.lr for lr, and for itself."""
    found = [name] if name in kind.model_fields else []
    for key, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            found += [f"{key}.{each}" for each in section.model_fields if name in (each, f"{key}.{each}")]
    return found


def _location(error: Any) -> list[int | str]:
    """Returns the path to a value, without the members of a union that pydantic adds to it."""
    member = re.compile(r"(bool|int|float|str)$|tuple\[|dict\[|literal\[|constrained-|function-")
    return [part for part in error["loc"] if not member.match(str(part))]
