"""What an analysis leaves: a PNG that explains itself, and a JSON with its numbers."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookaround_ddp.errors import UserError
from lookaround_ddp.files import write_atomically, write_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Numbers = dict[str, Any]  # JSON-able


LETTERS, SMALL_LETTERS = 12.5, 15.5  # in an inch of a title, and of a legend


class Output:
    """The files PREFIX.png and PREFIX.json.

    Raises:
        UserError: they could not be written; before minutes of computing, not after.
    """

    def __init__(self, prefix: Path) -> None:
        name = prefix.name.removesuffix(".png").removesuffix(".json")
        if not name:
            raise UserError(f"--out {prefix}: give a file's name without its suffix, such as {prefix / 'figure'}")
        self.png, self.json = prefix.with_name(f"{name}.png"), prefix.with_name(f"{name}.json")
        prefix.parent.mkdir(parents=True, exist_ok=True)
        for path in (self.png, self.json):
            if path.is_dir():
                raise UserError(f"--out {prefix}: {path} is a folder")
            if not os.access(prefix.parent, os.W_OK):
                raise UserError(f"--out {prefix}: {prefix.parent} is not writable")

    def write(self, numbers: Mapping[str, Any]) -> None:
        """Writes the JSON, and prints both files' names; a number that is not finite becomes null for any reader."""
        text = json.dumps(_finite(numbers), indent=1, allow_nan=False)
        write_atomically(self.json, f"{text}\n".encode())
        print(f"written: {self.png}, {self.json}")

    def draw(self, figure: Figure, title: str) -> None:
        """Saves the figure as the PNG, with a title that is broken into lines where the figure ends."""
        width = int(LETTERS * figure.get_figwidth())
        figure.suptitle(
            "\n".join(without_formulas(line) for line in textwrap.wrap(title, width, break_on_hyphens=False)),
            fontsize=10,
        )
        write_picture(self.png, figure, dpi=110)


def empty_figure(width: float, height: float) -> Figure:
    """Makes a figure; its sides are in inches."""
    from matplotlib.figure import Figure  # takes seconds to import

    return Figure(figsize=(width, height), layout="constrained")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def short_names(names: Sequence[str]) -> list[str]:
    """Shortens the names of run folders for a legend: to their last parts, if these differ."""
    last = [Path(name).name or name for name in names]
    return last if len(set(last)) == len(last) else list(names)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Draws one legend for all panels, of the curves in this one, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    columns = int(SMALL_LETTERS * figure.get_figwidth() / (max(map(len, labels)) + 6))  # 6: of a line or marker
    columns = min(max(columns, 1), len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def without_formulas(text: object) -> str:
    """Escapes a text so that matplotlib takes no part of it for a formula."""
    return str(text).replace("$", r"\$")
