"""In which values two configs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields 'key.path: old -> new' for every value in which two dumped configs differ."""
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from changed_keys(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}: {was} -> {now}"
