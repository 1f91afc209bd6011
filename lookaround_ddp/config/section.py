"""What all sections of a config have in common."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


Item = TypeVar("Item")


ListOf = Annotated[tuple[Item, ...], Field(strict=False)]  # a YAML list, frozen
