"""YAML files and key=value pairs -> one valid `Config`; a mistake is one line that names the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lookaround_ddp.config.rounds import check_k, k_text
from lookaround_ddp.config.schema import Config
from lookaround_ddp.errors import UserError, shortened

BASE = "base"  # in a config file: the files, relative to it, whose values it adds to or replaces


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Returns the config of a YAML file (None: the defaults, handwritten digits) with `key.path=value` pairs on top.

    A file may name others as its `base`, one or a list; later ones replace values of earlier ones, and the file
    replaces all of theirs. Sections are merged key by key, lists and other values are replaced.

    Raises:
        UserError: naming the file, the key, or the value, and what would be right.
    """
    values = _read(Path(path), ()) if path is not None else {}
    for pair in overrides:
        key, equals, text = pair.partition("=")
        said = shortened(pair)
        if not equals or not key:
            raise UserError(f"{said!r} is not of the form key.path=value, such as optimizer.lr=0.05")
        *sections, name = key.split(".")
        target = values
        for section in sections:
            if target.get(section) is None:  # not there, or an optional section that is off
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{said!r}: {shortened(section)} is a value, not a section")
        target[name] = _parse(text, said)
    return make_config(values)


def make_config(values: Mapping[str, Any]) -> Config:
    """Raises UserError: naming the value and what would be right."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    _check(config)
    return config


def _check(config: Config) -> None:
    """Checks what one field alone cannot tell."""
    if not config.replicas or not all(config.replicas):
        raise UserError(
            "replicas: give at least one replica, and each at least one augmentation ('none' for no change)"
        )
    check_k(config.average.k)
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise UserError("schedule.milestones is empty: multistep needs the epochs at which the rate falls")
    if (config.data.mean is None) != (config.data.std is None):
        raise UserError("data.mean and data.std go together: set both or neither")
    _check_method(config)
    if config.iterations is None:
        check_length(config, config.epochs)


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
    if config.snapshots and (config.schedule.name != "cosine" or config.schedule.cycles < 2 or average.k == "never"):
        raise UserError(
            "snapshots are models at the ends of cosine cycles: set schedule.name=cosine, schedule.cycles of at "
            "least 2, and an average.k other than never"
        )


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as a string; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Returns a file's values on top of its bases'; `above` are the files that led to it."""
    try:
        values = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"config {path}: {reason}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected 'key: value' lines, found a {type(values).__name__}")
    bases = values.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"config {path}: base is a file's name, or a list of them")
    merged: dict[str, Any] = {}
    here = path.resolve()
    for base in bases:
        if here in above:
            raise UserError(f"config {path}: it is its own base")
        merged = _merge(merged, _read(path.parent / base, (*above, here)))
    return _merge(merged, values)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise UserError(f"{where}: not YAML: {shortened(' '.join(str(error).split()), 400)}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    union = ("tuple[", "dict[", "literal[", "bool", "int", "float", "str")  # pydantic adds the member of a union
    location = [part for part in first["loc"] if not str(part).startswith(union)]
    if first["type"] == "extra_forbidden":
        *sections, name = map(str, location)
        section: type[BaseModel] = Config
        for part in sections:
            annotation: Any = section.model_fields[part].annotation
            section = (get_args(annotation) or [annotation])[0]  # of `Section | None`, the section
        known = list(section.model_fields)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*sections, close[0]])}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {shortened('.'.join(map(str, location)))}: {hint}"
    message = first["msg"].replace("tuple", "list").removeprefix("Input ")
    if location[:2] == ["average", "k"]:
        message = 'it should be an integer, epoch, "10 epochs" or never; or a list such as [[0, epoch], [100, 5]]'
    where, value = shortened(".".join(map(str, location))), shortened(repr(first["input"]))
    return f"{where} is {value}: {message}"
