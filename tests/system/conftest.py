"""Runs that several modules look at, or damage a copy of."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.runs import ROOT, train
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


@pytest.fixture(scope="session")
def activated(venv: Path) -> dict[str, str]:
    """The variables of a shell in which that environment is activated, with the package of this checkout."""
    made = venv / "bin"
    (made / "lookaround_ddp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lookaround_ddp "$@"\n')
    (made / "lookaround_ddp").chmod(0o755)
    (made / "activate").write_text(f'export PATH="{made}:$PATH"\n')
    own = {"PYTHONPATH": str(ROOT), "PATH": f"{made}:{os.environ['PATH']}", "VENV": str(venv), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}
