"""Run folders, read for reports, and grouped by what they have in common."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from lookaround_ddp.checkpoint import METRICS, check_shipped, read_result, run_config
from lookaround_ddp.config import Config, make_config
from lookaround_ddp.errors import UserError

SEEDS = re.compile(r"[-_./]+(seed|s)?[-_=]?\d*$")  # the end of the common part of names that end in a seed


@dataclass(frozen=True)
class RunRecord:
    """A run's config, its metrics lines, and its result (None while it has not finished).

    Or what was made of others, which has no lines: how, as `recipe` in its result, and `of` runs with which configs.
    """

    name: str
    config: Config
    lines: list[dict[str, Any]]
    result: dict[str, Any] | None
    of: tuple[Config, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether the run trained a single network."""
        return len(self.config.replicas) == 1

    @property
    def soup(self) -> list[str]:
        """The names of the runs that it is the mean of, if it is one."""
        return (self.result or {}).get("soup", [])

    @property
    def recipe(self) -> dict[str, Any]:
        """How it was made of others' runs; empty if it was trained."""
        return (self.result or {}).get("recipe", {})

    @property
    def winner(self) -> dict[str, Any]:
        """Which of others' runs it stands for: `name`, by the `score` on which images (`by`); empty if for none."""
        return (self.result or {}).get("winner", {})


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


DEEP = 3  # so many folders below one that is named may have runs in them: runs/paper/TABLE/CELL


def read_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Reads runs, each once however often it is named, and those in folders that are none.

    Says of what it leaves out: sweeps that have no winner yet, and what is no run among others that are.

    Raises:
        UserError: a file of a run is damaged; a path is not there; all that is named is no run.
    """
    named = list({folder.resolve(): folder for folder in folders}.values())
    found: dict[Path, Path] = {}
    for folder in named:
        runs = list(runs_in(folder))
        found |= {run.resolve(): run for run in runs}
        if not runs and not _is_sweep(folder):
            if len(named) == 1:
                run_config(folder)  # says what it is not
            print(f"{folder}: left out, since there is no run in it", file=sys.stderr)
    return [read_run(folder) for folder in found.values()]


def runs_in(folder: Path, deep: int = DEEP) -> Iterator[Path]:
    """Yields the folder, if it is a run's, or those of the runs in it; says so of sweeps without a winner."""
    if (folder / "config.yaml").exists() or not folder.exists():  # of which reading says that it is not there
        yield folder
        return
    if _is_sweep(folder):
        print(f"{folder}: a sweep that has not finished; its points are in it", file=sys.stderr)
        return
    below = sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() and deep else []
    for each in below:
        yield from runs_in(each, deep - 1)


def _is_sweep(folder: Path) -> bool:
    return any(folder.glob("*=*/config.yaml"))


def read_run(folder: Path) -> RunRecord:
    """Reads a run's folder; raises UserError if it is not a run's, or a file in it is damaged."""
    config = run_config(folder)
    check_shipped(config)
    result = read_result(folder)
    try:
        whole, _, _ = _text_of_file(folder / METRICS).rpartition("\n")  # the last line may still be written
        lines = [json.loads(line) for line in whole.splitlines()]
        if result is not None and "seconds" not in result:
            raise ValueError("result.json is not a run's result")
        of = tuple(make_config(each["config"]) for each in (result or {}).get("of", ()))
    except (ValueError, LookupError, TypeError, UserError) as error:
        raise UserError(f"the record in {folder} is damaged: {error}") from None
    return RunRecord(folder.resolve().name, config, lines, result, of)


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups runs whose configs differ in seeds and folders alone, in the order of their first ones.

    What was made of others' runs goes with what was made in the same way of runs of the same configs.
    """
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        own = run.soup if not run.of else [run.recipe, *map(without_seeds, run.of)]
        config = without_seeds(run.config) if not run.of else None  # of a winner, which may differ between seeds
        key = json.dumps([config, own], sort_keys=True)
        groups.setdefault(key, []).append(run)
    return [Group(_group_name([run.name for run in members]), tuple(members)) for members in groups.values()]


def saved_values(config: Config) -> dict[str, Any]:
    """Returns the config values that decide what models a run leaves: weights, and statistics measured anew."""
    values = config.identity()
    if config.evaluate.recalibrate or config.trajectory.name in ("swa", "swad"):
        measured = {"recalibrate", "recalibrate_iterations"}
        values["evaluate"] = config.evaluate.model_dump(mode="json", include=measured)
    return values


def without_seeds(config: Config) -> dict[str, Any]:
    """Returns the config values that decide what models a run leaves, but for its seeds."""
    values = saved_values(config)
    del values["seed"], values["data"]["split_seed"], values["model"]["seed"]
    return values


def judged_score(run: RunRecord) -> tuple[str, dict[str, float]] | None:
    """Returns the name and the score of what a run's method is to be judged by; None if it has not finished.

    That is the mean prediction of an ensemble, the average along time, the mean model, or the best of several.
    """
    result = run.result or {}
    if run.winner:
        return f"best of {len(run.of)}", result["mean"]
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


def held_out(run: RunRecord) -> dict[str, float] | None:
    """Returns the score of what a run's method is to be judged by, on its held-out images; None if it has none."""
    result = run.result or {}
    if "ensemble" in result:
        score = result.get("ensemble_validation", {}).get("logits")
    else:
        score = result.get("trajectory_validation" if "trajectory" in result else "validation")
    return score


def _group_name(names: Sequence[str]) -> str:
    """Returns a name for runs: the common beginning of their names, without that of the seeds."""
    if len(names) == 1:
        return names[0]
    letters = takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    return SEEDS.sub("", "".join(column[0] for column in letters)) or names[0]


def _text_of_file(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
