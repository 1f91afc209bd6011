"""Which checkpoints a config may go on from: those of older configs and of shorter runs, too."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from lookaround_ddp.config.load import make_config
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.state import check_resumable

DATA = SimpleNamespace(classes=10, trained_on="80 images")


def made(config: dict[str, Any], *lacking: str) -> dict[str, Any]:
    """The state of a checkpoint of this config, from before it had these keys."""
    values = copy.deepcopy(make_config(config).identity())
    for key in lacking:
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        del section[name]
    return {"classes": 10, "trained_on": "80 images", "config": values}


LATER = ("loss", "data.accumulate", "data.options", "optimizer.layer_decay")


@pytest.mark.parametrize("config", [{}, {"iterations": 30}, {"optimizer": {"sam": {}}, "average": {"outer": {}}}])
def test_an_older_checkpoint_goes_on(config: dict[str, Any]) -> None:
    check_resumable(make_config(config), DATA, made(config, *LATER))
    check_resumable(make_config(config | {"model": {"checkpointing": True}}), DATA, made(config, *LATER))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"accumulate": 2}}, r"another config \(data.accumulate: 1 -> 2\)"),
        ({"loss": "a.b"}, r"another config \(loss: cross_entropy -> a.b\)"),
        ({"iterations": 30}, r"another config \(epochs: 20 -> None; iterations: None -> 30\)"),
    ],
)
def test_a_later_key_with_another_value_is_another_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_resumable(make_config(values), DATA, made({}, *LATER))


LONGER = "change it back, make it longer with schedule.extend=stretch or hold, or train in another `out`"


@pytest.mark.parametrize(
    ("before", "values", "message"),
    [
        ({}, {"epochs": 21}, rf"another config \(epochs: 20 -> 21\): {LONGER}"),
        ({"iterations": 5}, {"iterations": 6}, LONGER),
        ({}, {"epochs": 21, "seed": 1}, r"\(epochs: 20 -> 21; seed: 0 -> 1\): change it back, or train in another"),
        ({}, {"epochs": 21, "seed": 1, "schedule": {"extend": "stretch"}}, r"\(seed: 0 -> 1\): change it back, or"),
        ({}, {"epochs": 19, "schedule": {"extend": "stretch"}}, r"\(epochs: 20 -> 19\): change it back, or train"),
        ({}, {"iterations": 9, "schedule": {"extend": "stretch"}}, r"epochs: 20 -> None; iterations: None -> 9"),
        ({}, {"epochs": 21, "schedule": {"extend": "hold"}}, "ends at schedule.min_lr, which is 0, and nothing would"),
        (
            {"snapshots": True, "schedule": {"cycles": 2}},
            {"epochs": 21, "snapshots": True, "schedule": {"cycles": 2, "extend": "stretch"}},
            "a longer run has other cycles: train it from its start, in another `out`",
        ),
    ],
)
def test_a_longer_run_needs_the_word(before: dict[str, Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_resumable(make_config(values), DATA, made(before, *LATER, "schedule.spans"))


def test_a_run_is_made_longer() -> None:
    """Also by analyses, which read its checkpoints of before; and one that was extended goes on without the word."""
    for extend, more in (("stretch", {}), ("hold", {"min_lr": 0.01}), ("hold", {"name": "constant"})):
        schedule = {"schedule": more}
        config = make_config({"epochs": 21, "schedule": {"extend": extend, **more}})
        check_resumable(config, DATA, made(schedule, *LATER, "schedule.spans"))
        check_resumable(make_config({"epochs": 21, **schedule}), DATA, made(schedule), longer=True)
    extended = {"epochs": 21, "schedule": {"spans": [[0, 80], [40, 84]]}}
    check_resumable(make_config({"epochs": 21}), DATA, made(extended))
    check_resumable(make_config(extended), DATA, made({}), longer=True)
    check_resumable(make_config({"epochs": 22, "schedule": {"extend": "stretch"}}), DATA, made(extended))
    with pytest.raises(UserError, match=r"schedule\.spans: "):
        check_resumable(make_config({"schedule": {"spans": [[0, 80], [40, 90]]}}), DATA, made({}))
