"""The configs that come with the package: found by name from any folder, as configs/... are in a clone."""

from __future__ import annotations

import os
from pathlib import Path

from lookaround_ddp.errors import UserError, nearest, shortened

PACKAGED = Path(__file__).parents[1] / "configs"


def configs_folder() -> Path:
    """Returns the folder of the configs that come with the package; in a clone's top folder its short name."""
    here = Path(PACKAGED.name)
    return here if here.is_dir() and here.resolve() == PACKAGED.resolve() else PACKAGED


def find_config(path: Path) -> Path:
    """Returns a config's file: the path, if there is one, or that of a shipped config of this name.

    digits/resnet8-lookaround, configs/digits/resnet8-lookaround.yaml: both are found from any folder.

    Raises:
        UserError: there is neither, but one of nearly that name.
    """
    if os.path.exists(path) or path.is_absolute():  # Path.exists raises where a value is too long for a file's name
        return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    found = configs_folder() / f"{name}.yaml"
    if ".." not in path.parts and os.path.isfile(found):
        return found
    hint = nearest(name, config_names())
    if path.suffix not in (".yaml", ".yml") and hint.startswith("did you mean"):
        raise UserError(f"there is no config {shortened(str(path))}: {hint}")
    return path  # reading it says what is wrong


def config_names() -> list[str]:
    """Returns the names of all shipped configs, such as digits/resnet8-lookaround."""
    folder = configs_folder()
    files = (path for path in folder.rglob("*.yaml") if path.parent.name != "base")  # what others are based on
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)


def about_config(name: str) -> str:
    """Returns the first line of a shipped config's comment."""
    with (configs_folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
