"""A run that is made longer than it was (`schedule.extend`): whether it can be, and what its schedule becomes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lookaround_ddp.config.schema import Config
from lookaround_ddp.errors import UserError

Values = Mapping[str, Any]  # of a config, as `Config.identity` returns them

LENGTH_KEYS = ("epochs", "iterations")  # of which a config counts by one


def grown(before: Values, config: Config) -> str | None:
    """Returns the key by which a config asks for a longer run than one with these values; None if by none."""
    key = "epochs" if config.iterations is None else "iterations"
    was = before.get(key)
    return key if was is not None and getattr(config, key) > was else None


def at_length_of(before: Values, wanted: Values) -> dict[str, Any]:
    """Returns the first values with the length of the second ones, and the spans that they give the cosine."""
    kept = {key: value for key, value in before.items() if key not in LENGTH_KEYS}
    kept |= {key: wanted[key] for key in LENGTH_KEYS if key in wanted}
    return kept | {"schedule": before["schedule"] | {"spans": wanted["schedule"]["spans"]}}


def check_extension(config: Config) -> None:
    """Raises UserError if a run of this config cannot be made longer, or would learn nothing more."""
    schedule = config.schedule
    if config.snapshots:
        raise UserError(
            "schedule.extend: the snapshots are models at the ends of the whole run's cycles, and a longer run has "
            "other cycles: train it from its start, in another `out`"
        )
    held = schedule.extend == "hold" and schedule.name == "cosine" and config.trajectory.swa_lr is None
    if held and schedule.min_lr == 0:
        raise UserError(
            "schedule.extend=hold: the cosine ends at schedule.min_lr, which is 0, and nothing would be learned from "
            "there on: give schedule.extend=stretch"
        )


def check_spans(config: Config) -> None:
    """Raises UserError unless the cosine's spans begin at the start, and come one after the other."""
    spans = config.schedule.spans
    ordered = all(earlier[0] < later[0] for earlier, later in pairwise(spans))
    if spans and not (spans[0][0] == 0 and ordered and all(length > 0 for _, length in spans)):
        raise UserError(
            "schedule.spans: the first begins at iteration 0, each at a later one than that before it, and all have "
            "a length: [[0, 100], [100, 200]] is a run of 100 iterations that was extended to 200"
        )
    if spans and config.snapshots:
        check_extension(config)


def as_extended(config: Config, before: Values | None, done: int, per_epoch: int) -> Config:
    """Returns the config of a run in a folder, with the spans that its schedule has, and no word to extend it.

    Args:
        before: the values with which the run in the folder has trained so far; None if there is none.
        done: the iterations after which it goes on.
        per_epoch: iterations in an epoch.
    """
    schedule = config.schedule
    spans = schedule.spans or tuple(tuple(each) for each in (before or {"schedule": {}})["schedule"].get("spans", ()))
    key = None if before is None else grown(before, config)
    if before is not None and key is not None and schedule.name == "cosine":
        spans = spans or ((0, before[key] * (per_epoch if key == "epochs" else 1)),)
        if schedule.extend == "stretch":
            spans = (*(each for each in spans if each[0] < done), (done, config.length(per_epoch)))
    return config.model_copy(update={"schedule": schedule.model_copy(update={"spans": spans, "extend": None})})
