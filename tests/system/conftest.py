"""Runs that several modules look at, or damage a copy of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.runs import train
from tests.support.small_runs import CONFIG


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(out, *CONFIG)
    return out


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run as it is after a kill between its last checkpoint and its end."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for name in ("result.json", "model.safetensors"):
        (out / name).unlink()
    return out
