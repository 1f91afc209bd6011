"""What all sections of a config have in common: how they are read, and kinds of values."""

from __future__ import annotations

import os
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lookaround_ddp.own_code import is_path


class Section(BaseModel):
    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,  # the reference of all keys prints them
    )


Item = TypeVar("Item")


ListOf = Annotated[tuple[Item, ...], Field(strict=False)]  # a YAML list, frozen


def _at_home(path: str) -> str:
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError("there is no such home; a folder of that name here is ./~...")
    return expanded


def _known_or_path(name: str) -> str:
    if not is_path(name):
        raise ValueError("it should be a known name, or the path of your own, such as my.module.images")
    return name


OwnPath = Annotated[str, AfterValidator(_known_or_path)]  # to somebody's own code
PathText = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]  # with ~ as a shell reads it
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Epochs = Annotated[float, Field(ge=0, le=1e9)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
