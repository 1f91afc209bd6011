"""Each kind of fault once, at random moments; `python -m tests.faults --kills 100` makes more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(1000)
def test_six_faults_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults", "--kills", "6"]
    process = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "all of which ended with the undisturbed bits" in process.stdout
