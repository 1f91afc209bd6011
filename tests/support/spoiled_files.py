"""A run's folder with something wrong in one of its files: as a disk, a copy, or somebody's editor leaves it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any


def spoil(run: Path, other: Path, seed: int) -> str:
    """Changes one file of a run's folder; returns what was done.

    Args:
        other: a run of the same kind, with other weights.
    """
    draw = random.Random(seed)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    path = draw.choice(files)
    kind = draw.choice(("bit", "cut", "cut", "empty", "gone", "more", "line", "value", "other"))
    content = path.read_bytes()
    if kind == "bit":
        at = draw.randrange(len(content) * 8)
        path.write_bytes(content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "gone":
        path.unlink()
    elif kind == "more":
        path.write_bytes(content + draw.choice((b"\0", b"\n{}", b"\nx: 1\n", content)))
    elif kind == "line":
        lines = content.splitlines(keepends=True)
        del lines[draw.randrange(len(lines))]
        path.write_bytes(b"".join(lines))
    elif kind == "value" and path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(content), draw)))
    elif kind == "other" or kind == "value":
        same = other / path.relative_to(run)
        shutil.copyfile(same if same.is_file() else other / "model.safetensors", path)
    return f"{kind} of {path.relative_to(run)}"


def changed(value: Any, draw: random.Random) -> Any:
    """Returns JSON in which one value is another."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return {**value, key: changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], changed(value[at], draw), *value[at + 1 :]]
    return draw.choice([each for each in (None, 0, 1, -1, 99.5, "x", [], {}, True, 1e308) if each != value])
