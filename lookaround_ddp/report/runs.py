"""Run folders, read for reports, and grouped by what they have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lookaround_ddp.checkpoint import run_config
from lookaround_ddp.config import Config
from lookaround_ddp.errors import UserError

SEEDS = re.compile(r"[-_./]+(seed|s)?[-_=]?\d*$")  # the end of the common part of names that end in a seed


@dataclass(frozen=True)
class RunRecord:
    """A run's config, its metrics lines, and its result (None while it has not finished)."""

    name: str
    config: Config
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def alone(self) -> bool:
        """Whether the run trained a single network."""
        return len(self.config.replicas) == 1

    @property
    def soup(self) -> list[str]:
        """The names of the runs that it is the mean of, if it was not trained."""
        return (self.result or {}).get("soup", [])


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in their seeds."""

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def alone(self) -> bool:
        return self.runs[0].alone

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.result is not None)


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder; raises UserError if it is not a run's, or its record is damaged."""
    config = run_config(folder)
    try:
        whole, _, _ = _text(folder / "metrics.jsonl").rpartition("\n")  # the last line may still be written
        lines = [json.loads(line) for line in whole.splitlines()]
        result = json.loads(_text(folder / "result.json") or "null")
        if result is not None and not (isinstance(result, dict) and "seconds" in result):
            raise ValueError("result.json is not a run's result")
    except ValueError as error:
        raise UserError(f"the record in {folder} is damaged: {error}") from None
    return RunRecord(folder.resolve().name, config, lines, result)


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups runs whose configs differ in seeds and folders alone, in the order of their first ones.

    A soup has the config of its first ingredient, and is a group of its own.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = json.dumps([without_seeds(run.config), run.soup], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [Group(_name([run.name for run in members]), tuple(members)) for members in groups.values()]


def without_seeds(config: Config) -> dict[str, Any]:
    """Returns the config values that decide a run's weights, but for its seeds."""
    values = config.identity()
    del values["seed"], values["data"]["split_seed"], values["model"]["seed"]
    return values


def shipped(run: RunRecord) -> tuple[str, dict[str, float]] | None:
    """Returns the name and the score of what a run's method is to be judged by; None if it has not finished.

    That is the mean prediction of an ensemble, the average along time, or the mean model.
    """
    result = run.result or {}
    if "ensemble" in result:
        return "ensemble, mean of logits", result["ensemble"]["logits"]
    if "trajectory" in result:
        return f"average along time ({run.config.trajectory.name})", result["trajectory"]
    if run.soup:
        return f"soup of {len(run.soup)}", result["mean"]
    if "mean" in result:
        return "single network" if run.alone else "mean model", result["mean"]
    if run.alone and result.get("members"):
        return f"average along time ({run.config.trajectory.name})", result["members"][0]
    if run.alone and result.get("replicas"):
        return "single network", result["replicas"][0]
    return None


def _name(names: Sequence[str]) -> str:
    """Returns a name for runs: the common beginning of their names, without that of the seeds."""
    if len(names) == 1:
        return names[0]
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return SEEDS.sub("", "".join(column[0] for column in letters)) or names[0]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
