"""The paper's tables: its published figures beside those of runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from lookaround_ddp.config import Config, changed_keys, load_config
from lookaround_ddp.errors import UserError
from lookaround_ddp.report.runs import Group, shipped, without_seeds
from lookaround_ddp.report.table import METRICS, markdown_table, plain, score_cells

CONFIGS = Path("configs/paper")  # in a clone


HOW = ("precision", "channels_last", "compile")  # how a cell may be computed without being another


@dataclass(frozen=True)
class Cell:
    """A row of a table: what was trained, by which config, and the figures that the paper gives for it."""

    table: str
    number: str  # of the table in the paper; empty where configs/paper/README.md says why it is not known
    dataset: str
    network: str
    method: str
    config: str
    published: dict[str, float]


def read_cells() -> list[Cell]:
    """Reads published.csv in its order. Top-1 and top-5 are in percent, NLL in nats; a blank one is left out."""
    text = resources.files("lookaround_ddp.report").joinpath("published.csv").read_text(encoding="utf-8")
    cells = []
    for row in csv.DictReader(text.splitlines()):
        published = {metric: float(row[metric]) for metric in METRICS if row[metric]}
        names = {key: row[key] for key in ("table", "number", "dataset", "network", "method", "config")}
        cells.append(Cell(**names, published=published))
    return cells


def paper_table(name: str, groups: Sequence[Group], folder: Path = CONFIGS) -> tuple[Table, list[str]]:
    """Makes a table, named or numbered as in the paper: published beside measured, a dash where there is nothing.

    Runs count for a cell if their config is the cell's, but for seeds, folders, and how they were computed. If groups
    differ in the latter alone, the first one counts.

    Args:
        groups: of runs.
        folder: of the configs.

    Returns:
        The table, and for each group that is no cell of it a line that says why.

    Raises:
        UserError: there is no such table, or its configs are not in `folder`.
    """
    cells = [cell for cell in read_cells() if name and name in (cell.table, cell.number)]
    if not cells:
        known = {cell.table: cell.number for cell in read_cells()}
        names = ", ".join(f"{table} ({number})" if number else table for table, number in known.items())
        raise UserError(f"there is no table {name!r}: known are {names}")
    if not (folder / cells[0].table).is_dir():
        raise UserError(f"the configs of table {name} are not in {folder.resolve()}: run this in a clone's top folder")
    headings = ["top-1 % published", "top-1 % here", "top-5 % published", "top-5 % here", "NLL published", "NLL here"]
    table = markdown_table("dataset", "network", "method", *headings, "n", text=3)
    configs = {cell.config: _values(load_config(folder / cell.table / f"{cell.config}.yaml")) for cell in cells}
    left = list(groups)
    for cell in cells:
        of_cell = (group for group in left if not group.runs[0].soup and _values(group.config) == configs[cell.config])
        group = next(of_cell, None)
        if group is not None:
            left.remove(group)
        scores = [found[1] for found in map(shipped, group.finished if group else ()) if found]
        cells_of_row = [cell.dataset, cell.network, cell.method]
        for metric, measured in zip(METRICS, score_cells(scores), strict=True):
            cells_of_row += [f"{cell.published[metric]:g}" if metric in cell.published else "-", measured]
        table.add_row(*map(plain, cells_of_row), plain(str(len(scores)) if scores else "-"))
    return table, [_stranger(group, configs) for group in left]


def _values(config: Config) -> dict[str, Any]:
    """Returns the config values that must be equal for a run to be a cell."""
    values = without_seeds(config)
    for name in HOW:
        del values[name]
    return values


def _stranger(group: Group, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Says why a group is no cell: how it differs from the one that it comes closest to."""
    own, names = _values(group.config), ", ".join(run.name for run in group.runs)
    closest = min(configs, key=lambda name: len(list(changed_keys(configs[name], own))))
    changes = list(changed_keys(configs[closest], own))
    if group.runs[0].soup:
        return f"{names}: no cell of this table, but a soup"
    if not changes:
        return f"{names}: left out, since {closest} has runs already that were computed in another way"
    others = f" and {len(changes) - 1} more" if changes[1:] else ""
    return f"{names}: no cell of this table, {closest} has {changes[0]}{others}"
