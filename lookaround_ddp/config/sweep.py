"""Sweeps: a config with lists of values for some of its keys, all of whose combinations are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lookaround_ddp.config.read import split
from lookaround_ddp.config.schema import Config
from lookaround_ddp.config.text import parse
from lookaround_ddp.errors import UserError, shortened

EXAMPLE = "{optimizer.lr: [0.1, 0.01]}"


CHOSEN = ("out", "seed")  # by whoever trains a point: the folder of each, and the seeds of all
LONGEST = 255  # bytes in the name of a folder


@dataclass(frozen=True)
class Point:
    """One combination: its folder's name, the values that make it, and the whole config."""

    name: str
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep in order, the last key's values changing fastest.

    Attributes:
        keys: those that are swept in the file.
        given: those of them that have one value now, from the command line.
    """

    keys: tuple[str, ...]
    given: tuple[str, ...]
    points: tuple[Point, ...]

    @property
    def whole(self) -> bool:
        """Whether these are all the points of the file."""
        return not self.given


def combinations(section: Any, overrides: Sequence[str], path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Returns the folder's name and the overrides of each point of a file's `sweep`.

    A swept key that is among the command line's overrides has that value alone.

    Raises:
        UserError: the section does not map keys to lists of values; a value would be lost, or is none of a config's;
            two points would have one folder, or one whose name is too long.
    """
    if not isinstance(section, dict) or not section:
        said = shortened(repr(section))
        raise UserError(f"sweep {path}: it maps keys to lists of values, such as {EXAMPLE}, and is {said}")
    texts = dict(map(split, overrides))
    choices: dict[str, list[Any]] = {}
    for key, values in ((str(key), values) for key, values in section.items()):
        if not isinstance(values, list) or not values:
            said = shortened(repr(values))
            raise UserError(f"sweep {path}: {key} is {said}: give it a list of values, such as {EXAMPLE}")
        if key in CHOSEN:
            raise UserError(f"sweep {path}: {key} cannot be swept: it is chosen for every point (`reproduce --seeds`)")
        below = next((other for other in texts if other.startswith(f"{key}.")), None)
        if below is not None:
            raise UserError(f"{below} would be lost, since {path} sweeps {key}: give {key}={{...}} as a whole")
        below = next((other for other in choices if other.startswith(f"{key}.")), None)
        if below is not None:
            raise UserError(f"sweep {path}: {below} would be lost, since {key} stands after it: put {key} first")
        choices[key] = [parse(texts[key], key)] if key in texts else values
        for value in choices[key]:
            _check_plain(value, key, path)
    points: dict[str, tuple[str, ...]] = {}
    for values in product(*choices.values()):
        pairs = list(zip(choices, values, strict=True))
        name = ",".join(f"{key}={_folder_text(value)}" for key, value in pairs)
        if name in points:
            raise UserError(f"sweep {path}: two of its points would be in one folder, {name}")
        if len(name.encode()) > LONGEST:
            said = shortened(name)
            raise UserError(f"sweep {path}: {said} is too long for a folder's name: sweep fewer keys or shorter values")
        points[name] = tuple(f"{key}={override_text(value)}" for key, value in pairs)
    return list(points.items())


def check_selection(points: Mapping[str, Config], path: Path) -> None:
    """Raises UserError unless all points hold out the same images to be compared by."""
    splits = {name: (each.data.name, each.data.validation, each.data.split_seed) for name, each in points.items()}
    if not all(each.data.validation for each in points.values()):
        raise UserError(f"sweep {path}: its winner is selected by held-out images: set data.validation")
    if any(map(is_never_averaged, points.values())):
        raise UserError(
            f"sweep {path}: its winner is selected by held-out images, on which one network that is never averaged has "
            "no score: leave average.k out"
        )
    if len(set(splits.values())) > 1:
        raise UserError(f"sweep {path}: its points hold out different images, and cannot be compared: sweep no data.*")


def is_never_averaged(config: Config) -> bool:
    """Returns whether a run is one network without a mean model, whose scores are on test images alone."""
    return config.average.k == "never" and len(config.replicas) == 1


def override_text(value: Any) -> str:
    """Returns a text that is read as this value again, without quotes where it needs none."""
    if isinstance(value, str) and value.isprintable() and _reads_as_itself(value):
        return value
    return json.dumps(value)


def _check_plain(value: Any, key: str, path: Path) -> None:
    """Raises UserError if a tag makes a value something that no config has, such as a date."""
    try:
        json.dumps(value)
    except TypeError:
        raise UserError(f"sweep {path}: {key} has {value}, which YAML reads as no text: put it in quotes") from None


def _reads_as_itself(text: str) -> bool:
    try:
        return bool(parse(text, "") == text)
    except UserError:
        return False


def _folder_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^\w.+-]+", "-", text)
