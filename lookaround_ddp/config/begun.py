"""The config of a run that has begun, perhaps with values that were other defaults then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config


def made_before(values: Mapping[str, Any]) -> Config:
    """Returns the config of a run that has begun, perhaps before there was a choice of `data.pipeline`.

    Raises:
        UserError: as `make_config`.
    """
    return as_begun(make_config(values))


def as_begun(config: Config) -> Config:
    """Returns the config of a run that has begun: one that says nothing of `data.pipeline` had the loader processes."""
    return config if "pipeline" in config.data.model_fields_set else with_pipeline(config, "workers")


def with_pipeline(config: Config, pipeline: str) -> Config:
    """Returns the config with this `data.pipeline`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"pipeline": pipeline})})
