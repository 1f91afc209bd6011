"""The cells of the paper's tables: their figures, and what a run must be to be one of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from lookaround_ddp.config import Config, Recipe, Sweep, configs_folder, load_cell, load_ingredients
from lookaround_ddp.errors import UserError
from lookaround_ddp.report.runs import RunRecord, without_seeds
from lookaround_ddp.report.table import DECIMALS

CONFIGS = configs_folder() / "paper"


HOW = ("precision", "channels_last", "compile")  # how a cell may be computed without being another


@dataclass(frozen=True)
class Cell:
    """A row of a table: what was trained or made, by which file, and the figures that the paper prints for it."""

    table: str
    number: str  # of the table in the paper; empty if it is not the paper's
    dataset: str
    network: str
    method: str
    config: str
    published: dict[str, str]  # as printed: 95.00

    @property
    def name(self) -> str:
        """Its file in a folder of tables, without .yaml."""
        return f"{self.table}/{self.config}"

    def file(self, folder: Path = CONFIGS) -> Path:
        return folder / f"{self.name}.yaml"


@cache
def read_cells() -> list[Cell]:
    """Reads published.csv in its order. Top-1 and top-5 are in percent, NLL in nats; a blank one is left out."""
    text = resources.files("lookaround_ddp.report").joinpath("published.csv").read_text(encoding="utf-8")
    cells = []
    for row in csv.DictReader(text.splitlines()):
        published = {metric: row[metric] for metric in DECIMALS if row[metric]}
        names = {key: row[key] for key in ("table", "number", "dataset", "network", "method", "config")}
        cells.append(Cell(**names, published=published))
    return cells


def cells_of(name: str, folder: Path = CONFIGS) -> list[Cell]:
    """Returns the rows of a table of the paper by its number, or of a folder of `folder` by its name.

    Raises:
        UserError: there is none, or its files are not in `folder`.
    """
    cells = read_cells()
    found = [cell for cell in cells if name and name in (cell.table, cell.number)]
    if not found:
        known = [*table_numbers(cells), *dict.fromkeys(cell.table for cell in cells)]
        raise UserError(f"there is no table {name!r}: known are {', '.join(known)}")
    if not (folder / found[0].table).is_dir():
        raise UserError(f"the configs of table {name} are not in {folder.resolve()}: run this in a clone's top folder")
    return found


def table_numbers(cells: Sequence[Cell]) -> list[str]:
    """Returns the numbers of the paper's tables that there are cells of, in order."""
    return sorted({cell.number for cell in cells if cell.number}, key=int)


def cell_key(file: Path) -> str | None:
    """Returns what a run must be to be the cell of this file; None if no run is (a figure that is quoted)."""
    cell = load_cell(file)
    if isinstance(cell, Config):
        return _values_text(trained_values(cell))
    if isinstance(cell, Sweep):
        return made_key(None, [point.config for point in cell.points])
    if cell.recipe == "quoted":
        return None
    return made_key(cell, _configs(cell, file))


def made_key(recipe: Recipe | None, configs: Sequence[Config]) -> str:
    """Returns what a run must be that a recipe makes of runs of these configs; or, without one, a sweep's winner."""
    how = {"recipe": "sweep"} if recipe is None else recipe.record()
    return _values_text([how, *map(trained_values, configs)])


def run_key(run: RunRecord) -> str:
    """Returns what a run is, for `cell_key`: what decides its weights, but for seeds and how they were computed."""
    if run.recipe:
        return _values_text([run.recipe, *map(trained_values, run.of)])
    return _values_text([run.soup, trained_values(run.config)] if run.soup else trained_values(run.config))


def trained_values(config: Config) -> dict[str, Any]:
    """Returns the config values that must be equal for a run to be a cell."""
    values = without_seeds(config)
    for name in HOW:
        del values[name]
    del values["data"]["pipeline"]  # other draws of the same augmentations
    return values


def _configs(recipe: Recipe, file: Path) -> list[Config]:
    """Returns the configs of all runs that something is made of."""
    configs: list[Config] = []
    for _, cell in load_ingredients(recipe, file):
        configs += [cell] if isinstance(cell, Config) else [point.config for point in cell.points]
    return configs


def _values_text(values: Any) -> str:
    return json.dumps(values, sort_keys=True)
