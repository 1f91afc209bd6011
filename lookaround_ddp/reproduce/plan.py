"""What is to be trained and made for cells and their seeds, and in which folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookaround_ddp.checkpoint import RESULT
from lookaround_ddp.config import Config, Recipe, Sweep, load_cell, load_ingredients
from lookaround_ddp.errors import UserError
from lookaround_ddp.report import CONFIGS, cells_of, read_cells
from lookaround_ddp.reproduce.checks import check_finished, check_ingredients, check_made

PAPER, OTHERS = Path("runs/paper"), Path("runs")  # where runs of the paper's cells are, and of other files


@dataclass(frozen=True)
class Training:
    """A run of a cell, or of a sweep's point, with a seed."""

    name: str
    file: Path
    run: Path
    config: Config
    overrides: tuple[str, ...]  # the command line's
    point: tuple[str, ...] = ()  # and those that make a sweep's point

    @property
    def arguments(self) -> list[str]:
        """What `train` is given."""
        own = [f"out={json.dumps(str(self.run))}", f"seed={self.config.seed}"]
        return [str(self.file), *own, *self.overrides, *self.point]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run / RESULT).is_file()


@dataclass(frozen=True)
class Making:
    """What a recipe makes of the runs of one seed; or, without one, the winner of a sweep's points."""

    name: str
    file: Path
    run: Path
    recipe: Recipe | None
    of: tuple[Training, ...]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.run / RESULT).is_file()

    @property
    def kind(self) -> str:
        """What it is, in a word or two."""
        return "winner" if self.recipe is None else self.recipe.recipe


@dataclass
class Plan:
    """Trainings in order, each once; what is made of them then; and what is shown in the end."""

    overrides: tuple[str, ...]
    trainings: dict[Path, Training] = field(default_factory=dict)  # by run folder
    makings: dict[Path, Making] = field(default_factory=dict)
    quoted: list[str] = field(default_factory=list)  # names of cells that nothing is run for
    tables: dict[str, list[Path]] = field(default_factory=dict)  # of the paper: the runs of its cells; "": of files


def make_plan(
    names: Sequence[str], overrides: Sequence[str] = (), seeds: Sequence[int] = (0,), runs: Path | None = None
) -> Plan:
    """Returns what there is to do for tables of the paper, by name or number, and for files, and folders of files.

    Args:
        overrides: values for the configs of all trainings.
        seeds: of each cell.
        runs: where runs are; a cell's are in FOLDER/FILE-sSEED, named as its file and that file's folder.

    Raises:
        UserError: a table or a file that is not there; a mistake in one; runs that were trained with other values.
    """
    for pair in overrides:
        key = pair.partition("=")[0]
        if key in ("out", "seed"):
            raise UserError(f"{key} is another one for each run: use {'--runs' if key == 'out' else '--seeds'}")
    plan = Plan(tuple(overrides))
    for name in names:
        table, files = files_of(name)
        shown = plan.tables.setdefault(table, [])
        for file in files:
            cell = load_cell(file, overrides)
            if isinstance(cell, Recipe):
                added = _add_recipe(plan, file, cell, seeds, runs)
            else:
                added = [run for seed in seeds for run in _add_cell(plan, file, cell, seed, runs)]
            shown += (run for run in added if run not in shown)
    return plan


def files_of(name: str) -> tuple[str, list[Path]]:
    """Returns the table of the paper that is named, if it is one, and the files of its cells.

    Raises:
        UserError: there is no such table, file or folder, or the folder has no files.
    """
    path = Path(name)
    known = any(name in (cell.table, cell.number) for cell in read_cells() if name)
    if path.is_file():
        return "", [path]
    if path.is_dir() and not known:
        files = sorted(path.glob("*.yaml"))
        if not files:
            raise UserError(f"there are no .yaml files in {path}")
        return "", files
    if not known and (path.suffix or os.sep in name):
        raise UserError(f"there is no file or folder {name}")
    return name, [cell.file() for cell in cells_of(name)]


def planned_folder(file: Path, seed: int, runs: Path | None) -> Path:
    """Returns where the run of a cell is."""
    paper = file.resolve().is_relative_to(CONFIGS.resolve())
    return (runs or (PAPER if paper else OTHERS)) / file.resolve().parent.name / f"{file.stem}-s{seed}"


def _add_cell(plan: Plan, file: Path, cell: Config | Sweep, seed: int, runs: Path | None) -> list[Path]:
    """Adds the trainings of a cell, and the winner of a sweep; returns the folders whose scores are the cell's."""
    trainings = _trainings(plan, file, cell, seed, runs)
    run = planned_folder(file, seed, runs)
    if isinstance(cell, Sweep) and cell.whole:
        _add_making(plan, Making(_training_name(file, seed), file, run, None, trainings))
    else:
        _add_trainings(plan, trainings)
    return [run] if isinstance(cell, Config) or cell.whole else []  # other points may be trained elsewhere


def _add_recipe(plan: Plan, file: Path, recipe: Recipe, seeds: Sequence[int], runs: Path | None) -> list[Path]:
    """Adds what a recipe makes, and the trainings of what it is made of; returns the folders of the former."""
    if recipe.recipe == "quoted":
        plan.quoted.append(f"{file.resolve().parent.name}/{file.stem}")
        return []
    ingredients = load_ingredients(recipe, file, plan.overrides)
    for other, cell in ingredients:
        if isinstance(cell, Sweep) and not cell.whole:
            raise UserError(f"{file} is made of all points of {other}: leave {cell.given[0]} out")
    added = []
    for seed in seeds:
        of = tuple(each for other, cell in ingredients for each in _trainings(plan, other, cell, seed, runs))
        making = Making(_training_name(file, seed), file, planned_folder(file, seed, runs), recipe, of)
        check_ingredients(file, recipe, [each.run for each in of], [each.config for each in of])
        _add_making(plan, making)
        added.append(making.run)
    return added


def _trainings(plan: Plan, file: Path, cell: Config | Sweep, seed: int, runs: Path | None) -> tuple[Training, ...]:
    """Returns the trainings of a cell and a seed: one, or one for each point."""
    run, name = planned_folder(file, seed, runs), _training_name(file, seed)
    if isinstance(cell, Config):
        config = cell.model_copy(update={"seed": seed, "out": str(run)})
        return (Training(name, file, run, config, plan.overrides),)
    found = []
    for point in cell.points:
        folder = run / point.name
        config = point.config.model_copy(update={"seed": seed, "out": str(folder)})
        found.append(Training(f"{name}, {point.name}", file, folder, config, plan.overrides, point.overrides))
    return tuple(found)


def _add_trainings(plan: Plan, trainings: Sequence[Training]) -> None:
    for training in trainings:
        _check_folder(plan, training)
        if plan.trainings.setdefault(training.run, training) is training:
            check_finished(training.run, training.config)


def _add_making(plan: Plan, making: Making) -> None:
    """Adds what is to be made, and the trainings that it needs: none if it is there."""
    _check_folder(plan, making)
    if making.run in plan.makings:
        return
    if making.finished:
        check_made(making.run, making.recipe, [each.config for each in making.of])
    else:
        _add_trainings(plan, making.of)
    plan.makings[making.run] = making


def _check_folder(plan: Plan, new: Training | Making) -> None:
    """Raises UserError if a run of another file would be in the same folder."""
    for there in (plan.trainings.get(new.run), plan.makings.get(new.run)):
        if there is not None and there.file.resolve() != new.file.resolve():
            both = f"the runs of {there.file} and {new.file} would both be {new.run}"
            raise UserError(f"{both}: rename one or its folder")


def _training_name(file: Path, seed: int) -> str:
    return f"{file.resolve().parent.name}/{file.stem}, seed {seed}"
