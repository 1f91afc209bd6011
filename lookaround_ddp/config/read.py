"""YAML files, based on others, and `key.path=value` pairs -> nested values that nothing has checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookaround_ddp.config.text import parse
from lookaround_ddp.errors import UserError, shortened
from lookaround_ddp.files import regular

BASE = "base"  # in a config file: the files, relative to it, whose values it adds to or replaces


def read_file(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns a file's values on top of its bases'; `above` are the files that led to it.

    Sections are merged key by key, lists and other values are replaced.

    Raises:
        UserError: the file, or a base, is not there, or is no YAML of `key: value` lines; it is its own base.
    """
    try:
        values = parse(regular(path).read_text(encoding="utf-8"), str(path))
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
        merged = _merge(merged, read_file(path.parent / os.path.expanduser(base), (*above, here)))
    return _merge(merged, values)


def replace_values(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Puts the values of `key.path=value` pairs into the nested values: of two with the same key the last one's.

    Raises:
        UserError: one is not of that form, its value is no YAML, or its path leads through a value; or it would replace
            a whole section that another pair has put a value into.
    """
    given: list[str] = []
    for pair in overrides:
        key, text = split(pair)
        said = shortened(pair)
        below = next((other for other in given if other.startswith(f"{key}.")), None)
        if below is not None:
            raise UserError(f"{shortened(below)} would be lost, since {said} stands after it: put that first")
        given.append(key)
        *sections, name = key.split(".")
        target = values
        for section in sections:
            if target.get(section) is None:  # not there, or an optional section that is off
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UserError(f"{said!r}: {shortened(section)} is a value, not a section")
        target[name] = parse(text, said)


def split(pair: str) -> tuple[str, str]:
    """Returns the key and the text of a `key.path=value` pair; raises UserError if it is none."""
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise UserError(f"{shortened(pair)!r} is not of the form key.path=value, such as optimizer.lr=0.05")
    return key, text


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
