"""A table of cells in a folder of its own: two configs, a sweep, and what is made of them."""

from __future__ import annotations

from pathlib import Path

from lookaround_ddp.config import Config, load_config

FILES = {
    "table/a": "base: ../other/b.yaml\nreplicas: [[hflip], [vflip]]\n",
    "other/b": "data: {validation: 40, batch_size: 32}\nepochs: 5\nreplicas: [[hflip, vflip]]\nmodel: {seed: 0}\n",
    "table/grid": "base: a.yaml\nsweep: {optimizer.lr: [0.1, 0.01]}\n",
    "table/mixed": "recipe: ensemble\nof: [grid, ../other/b]\n",
    "table/soup": "recipe: soup\nof: [../other/b, a]\nselect: top:2\nupdate_bn: true\n",
    "table/theirs": "recipe: quoted\n",
}
POINTS = ["grid-s0/optimizer.lr=0.1", "grid-s0/optimizer.lr=0.01"]


def config_of(run: str, **changed: object) -> Config:
    """What a run of a cell is trained with, by its folder's name."""
    cell, _, seed = run.partition("/")[0].rpartition("-s")
    overrides = run.split("/")[1:]
    file = next(Path(folder) / f"{cell}.yaml" for folder in ("table", "other") if Path(folder, f"{cell}.yaml").exists())
    return load_config(file, overrides).model_copy(update={"seed": int(seed), **changed})
