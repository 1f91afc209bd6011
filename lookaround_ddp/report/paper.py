"""The paper's tables: its published figures beside those of runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from lookaround_ddp.config import changed_keys
from lookaround_ddp.report.cells import (
    CONFIGS,
    Cell,
    cell_key,
    cells_of,
    read_cells,
    run_key,
    table_numbers,
    trained_values,
)
from lookaround_ddp.report.runs import Group, judged_score
from lookaround_ddp.report.table import DECIMALS, HEADINGS, lines_of, markdown_table, plain, score_cells

ALL = "all"  # the name of all tables together


TITLES = {
    "1": "CIFAR-10 and CIFAR-100, from scratch",
    "2": "ResNet-50 on ImageNet",
    "3": "fine-tuning pretrained networks",
    "4": "SAM and Lookaround",
    "5": "ensembles, CIFAR-100",
    "6": "ablation: data augmentation (DA) and weight averaging (WA)",
    "7": "number of data augmentations",
    "8": "search for the rate and weight decay of fine-tuning",
    "9": "Stanford Cars",
    "10": "DART",
    "11": "model soups, fine-tuning on CIFAR-100",
}


HEADING = dict(zip(DECIMALS, HEADINGS, strict=True))


MADE_NAMES = {
    "soup": "a soup",
    "ensemble": "an ensemble",
    "best": "the best of several",
    "sweep": "the winner of a sweep",
}


PAGE = """\
# The tables of "Lookaround Optimizer: k steps around, 1 step average" beside runs

`here` is the mean ± standard error of n runs with different seeds and, in parentheses, its difference from the
published figure. A dash: not published, or not run."""


def paper_page(name: str, groups: Sequence[Group], folder: Path = CONFIGS) -> str:
    """Returns a table, named or numbered as in the paper, or all of them, as Markdown: published beside measured.

    Runs count for a cell if they were trained with its config, or made by its recipe, but for seeds, folders, and how
    they were computed. If groups differ in the latter alone, the first one counts. Below a table stands which run a
    cell is that is the best of several, and at the end, for each group that is no cell, a line that says why.

    Raises:
        UserError: there is no such table, or its configs are not in `folder`.
    """
    tables = _all_tables(folder) if name == ALL else {"": cells_of(name, folder)}
    keys = {cell.name: cell_key(cell.file(folder)) for cells in tables.values() for cell in cells}
    blocks = [PAGE] if name == ALL else []
    used: list[Group] = []
    for title, cells in tables.items():
        found = _groups_of(cells, keys, groups)
        used += found.values()
        lines = [line for group in found.values() for line in _winners(group)]
        blocks += [f"## {title}"] * bool(title) + ["\n".join(lines_of(_table(cells, found)))]
        blocks += ["\n".join(lines)] * bool(lines)
    strangers = [_stranger(group, keys) for group in groups if group not in used]
    if strangers:
        blocks += ["## Runs that are no cells"] * (name == ALL) + ["\n".join(strangers)]
    return "\n\n".join(blocks)


def _all_tables(folder: Path) -> dict[str, list[Cell]]:
    """Returns the paper's tables in order, then what folders have beside them, by title."""
    cells = read_cells()
    tables = {}
    for number in table_numbers(cells):
        title = f"Table {number}: {TITLES[number]}" if number in TITLES else f"Table {number}"
        tables[title] = cells_of(number, folder)
    for name in dict.fromkeys(cell.table for cell in cells if not cell.number):
        tables[f"Not in the paper: {name}"] = [cell for cell in cells_of(name, folder) if not cell.number]
    return tables


def _groups_of(cells: Sequence[Cell], keys: Mapping[str, str | None], groups: Sequence[Group]) -> dict[str, Group]:
    """Returns for each cell, by name, the first group that it is of."""
    found: dict[str, Group] = {}
    for group in groups:
        key = run_key(group.runs[0])
        for cell in cells:
            if keys[cell.name] == key:
                found.setdefault(cell.name, group)
    return found


def _table(cells: Sequence[Cell], found: Mapping[str, Group]) -> Table:
    """Makes the table; a metric that the paper does not give and that nothing was run for has no columns."""
    scores = {name: [each[1] for each in map(judged_score, group.finished) if each] for name, group in found.items()}
    known = {metric for cell in cells for metric in cell.published}
    known.update(metric for each in scores.values() for score in each for metric in score)
    shown = [metric for metric in DECIMALS if metric in known or metric == "top1"]
    headings = [name for metric in shown for name in (f"{HEADING[metric]} published", f"{HEADING[metric]} here")]
    table = markdown_table("dataset", "network", "method", *headings, "n", text=3)
    for cell in cells:
        own = scores.get(cell.name, [])
        measured = dict(zip(DECIMALS, score_cells(own), strict=True))
        row = [cell.dataset, cell.network, cell.method]
        for metric in shown:
            published, values = cell.published.get(metric), [score[metric] for score in own if metric in score]
            here = measured[metric]
            if published and values:
                here += f" ({statistics.fmean(values) - float(published):+.{DECIMALS[metric]}f})"
            row += [published or "-", here]
        table.add_row(*map(plain, row), plain(str(len(own)) if own else "-"))
    return table


def _winners(group: Group) -> list[str]:
    """Says of each run that is the best of several which one it is."""
    return [
        f"- {run.name}: {run.winner['name']} is the best of {len(run.of)} by {run.winner['by']} images "
        f"(top-1 {run.winner['score']['top1']:.2f} there)"
        for run in group.finished
        if run.winner
    ]


def _stranger(group: Group, keys: Mapping[str, str | None]) -> str:
    """Says why a group is no cell: how it differs from the one that it comes closest to."""
    run, names = group.runs[0], ", ".join(run.name for run in group.runs)
    kind = run.recipe.get("recipe") or ("soup" if run.soup else "")
    cells = {name: json.loads(key) for name, key in keys.items() if key}
    trained = {name: values for name, values in cells.items() if isinstance(values, dict)}
    if run_key(run) in keys.values():
        name = next(name for name, key in keys.items() if key == run_key(run))
        return f"- {names}: left out, since {name} has runs already that were computed otherwise"
    if kind or not trained:
        return f"- {names}: no cell" + (f", but {MADE_NAMES[kind]}" if kind else "")
    own = trained_values(group.config)
    closest = min(trained, key=lambda name: len(list(changed_keys(trained[name], own))))
    first, *others = changed_keys(trained[closest], own)
    more = f" and {len(others)} more" if others else ""
    return f"- {names}: no cell, {closest} has {first}{more}"
