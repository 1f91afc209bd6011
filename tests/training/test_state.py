"""Which checkpoints a config may go on from: those of older configs, too."""

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
