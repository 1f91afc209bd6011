"""Each kind of fault once, at random moments; `python -m tests.faults --kills 100` makes more."""

from __future__ import annotations

import subprocess
import sys

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT


def test_six_faults_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.faults", "--kills", "6"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_TIMEOUT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "all of which ended with the undisturbed bits" in process.stdout
