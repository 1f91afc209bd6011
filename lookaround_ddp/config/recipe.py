"""Cells of a table that train nothing: what is made of the runs of others."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from lookaround_ddp.config.schema import ListOf, Section
from lookaround_ddp.errors import UserError

OWN = {"select": "soup", "update_bn": "soup", "by": "best"}  # keys that one kind alone has


SELECT = re.compile(r"uniform|greedy|top:[1-9][0-9]*")


class Recipe(Section):
    recipe: Literal["ensemble", "soup", "best", "quoted"]
    """ensemble: the mean of the logits of all networks of the runs (of a logit ensemble, its members'); soup: the mean
    of their weights; best: the score of the best of them; quoted: a figure of other work, which nothing is made for."""
    of: ListOf[str] = ()
    """The cells: files relative to this one, without .yaml. A sweep stands for its points."""
    select: str = "greedy"
    """soup: uniform, top:N or greedy, as the command `soup` has them."""
    update_bn: bool = False
    """soup: measure batch-norm's statistics of every mixture over the whole training set."""
    by: Literal["test", "validation"] = "validation"
    """best: the images that the best one is selected by."""

    def files(self, path: Path) -> list[Path]:
        """Returns the files of the cells that the recipe in the file `path` names, in its order."""
        return [path.parent / f"{name}.yaml" for name in self.of]

    def record(self, recalibrate_iterations: int | None = None) -> dict[str, Any]:
        """Returns what result.json holds of how something was made, beside what it was made of.

        Args:
            recalibrate_iterations: those whose batches a soup's batch-norm was measured over; None: of a whole epoch.
        """
        if self.recipe == "best":
            return {"recipe": self.recipe, "by": self.by}
        if self.recipe != "soup":
            return {"recipe": self.recipe}
        record = {"recipe": self.recipe, "select": self.select, "update_bn": self.update_bn}
        return record | {"recalibrate_iterations": recalibrate_iterations} if self.update_bn else record


def check_recipe_file(recipe: Recipe, path: Path) -> None:
    """Raises UserError: a key of another kind, or cells that are not there."""
    for key in sorted(recipe.model_fields_set & OWN.keys()):
        if recipe.recipe != OWN[key]:
            raise UserError(f"recipe {path}: {key} is for recipe: {OWN[key]}, and this one is {recipe.recipe}")
    if recipe.recipe == "quoted":
        if recipe.of:
            raise UserError(f"recipe {path}: a quoted figure is made of nothing: leave `of` out")
        return
    if not SELECT.fullmatch(recipe.select):
        raise UserError(f"recipe {path}: select is {recipe.select!r}: use uniform, greedy or top:N")
    if not recipe.of:
        raise UserError(f"recipe {path}: of is empty: name the cells that it is made of, files without .yaml")
    named: set[Path] = set()
    for name, file in zip(recipe.of, recipe.files(path), strict=True):
        if file.resolve() in named:
            raise UserError(f"recipe {path}: {name} is named twice")
        named.add(file.resolve())
        if not file.is_file():
            there = [each.stem for each in file.parent.glob("*.yaml")]
            close = difflib.get_close_matches(file.stem, there, n=1, cutoff=0.5)
            hint = f": did you mean {Path(name).with_name(close[0])}?" if close else ", which it names"
            raise UserError(f"recipe {path}: there is no {file}{hint}")
