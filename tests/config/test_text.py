"""Scalars of YAML texts: those of YAML 1.2's core schema, wherever they stand."""

from __future__ import annotations

import pytest
import yaml

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.text import dump, parse
from lookaround_ddp.errors import UserError

SCALARS = {  # a text -> the value that YAML 1.2 (10.3.2) gives it
    "010": 10,
    "-007": -7,
    "+12": 12,
    "0o10": 8,
    "0x1F": 31,
    "1:30": "1:30",
    "1:30.5": "1:30.5",
    "1_000": "1_000",
    "0b11": "0b11",
    "1e-3": 0.001,
    "1E3": 1000.0,
    "1.": 1.0,
    ".5": 0.5,
    "-5e+1": -50.0,
    "010.5": 10.5,
    ".inf": float("inf"),
    "-.INF": float("-inf"),
    "yes": "yes",
    "no": "no",
    "On": "On",
    "off": "off",
    "y": "y",
    "true": True,
    "FALSE": False,
    "": None,
    "~": None,
    "null": None,
    "2024-01-01": "2024-01-01",
    "=": "=",
    "1e": "1e",
    ".": ".",
    "10 epochs": "10 epochs",
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_yaml_1_2_says(text: str) -> None:
    for found in (parse(text, ""), parse(f"[{text}]", "")[0] if text else None, parse(f"a: {text}", "")["a"]):
        assert found == SCALARS[text]
        assert type(found) is type(SCALARS[text])


@pytest.mark.parametrize("text", [*SCALARS, "a", "5e-4", "0o7", "<<", "# x", "a: b"])
def test_texts_and_numbers_are_written_so_that_they_are_read_again(text: str) -> None:
    """Also by a reader of YAML 1.1."""
    values = {"text": text, "list": [text], "number": 1e-05, "large": 1e22, "integer": 10, "flag": True, "no": None}
    assert parse(dump(values), "") == values
    assert yaml.safe_load(dump(values))["text"] == text


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("deterministic=yes", "deterministic is 'yes': should be a valid boolean"),
        ("data.download=off", "data.download is 'off': should be a valid boolean"),
        ("epochs=1:30", "epochs is '1:30': should be a valid integer"),
        ("epochs=1_000", "epochs is '1_000': should be a valid integer"),
        ("average.k=1:30", "average.k is '1:30': it should be an integer, epoch"),
        ("seed=!!int 1:30", "seed=!!int 1:30: not YAML: invalid literal for int()"),
    ],
)
def test_what_only_yaml_1_1_reads_is_refused_by_type(pair: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(None, [pair])
    assert message in str(raised.value)
    assert load_config(None, ["average.k=010"]).average.k == 10
