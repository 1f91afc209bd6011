"""The config files of the repository, and what kind of file each is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from lookaround_ddp.config import Config
from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.read import read_file
from tests.support.runs import ROOT

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "base"]
PAPER = ROOT / "configs" / "paper"


@cache
def values(path: Path) -> dict[str, Any]:
    """Returns a file's values on top of its bases'."""
    return read_file(path)


def kind(path: Path) -> str:
    """Returns what a file is: a recipe, a sweep, or a training."""
    return next((name for name in ("recipe", "sweep") if name in values(path)), "training")


def trained(path: Path) -> Config:
    """Returns the config of a training, or of a sweep without what it sweeps."""
    return make_config({key: value for key, value in values(path).items() if key != "sweep"})


TRAININGS = [path for path in CONFIGS if kind(path) != "recipe"]
