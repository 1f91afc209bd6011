"""The smallest real training under torchrun: two replicas on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.runs import TINY, torchrun, train, weights

CONFIG = (*TINY, "replicas=[[crop],[rotation]]")


@pytest.mark.quick
def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    torchrun("train", f"out={tmp_path}/two", *CONFIG, ranks=2)
    train(tmp_path / "one", *CONFIG)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "result.json").read_text())["processes"] == 2
