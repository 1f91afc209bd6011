"""Run folders, read for reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookaround_ddp.config import Config, UserError
from lookaround_ddp.finished import run_config


@dataclass(frozen=True)
class RunRecord:
    """A run's config, its metrics lines, and its result (None while it has not finished)."""

    name: str
    config: Config
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None


def read_run(folder: Path) -> RunRecord:
    """Raises UserError if the folder is not a run's, or its record is damaged."""
    config = run_config(folder)
    try:
        whole, _, _ = _text(folder / "metrics.jsonl").rpartition("\n")  # the last line may still be written
        lines = [json.loads(line) for line in whole.splitlines()]
        result = json.loads(_text(folder / "result.json") or "null")
    except ValueError as error:
        raise UserError(f"the record in {folder} is damaged: {error}") from None
    return RunRecord(folder.resolve().name, config, lines, result)


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
