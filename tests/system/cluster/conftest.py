"""Where the launchers really run. These tests need root and Debian's packages; without them they are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT


def require(*commands: str) -> None:
    """Skips a test where the machine lacks what it needs, and says what."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, venv: Path) -> Iterator[dict[str, str]]:
    """Three SLURM nodes on this machine; the environment to use them in."""
    require("sbatch", "slurmctld", "slurmd", "munged", "unshare")
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("slurm.sh")
    subprocess.run(["bash", script, "up", folder, "3"], check=True, timeout=TEST_TIMEOUT)
    yield {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "VENV": str(venv), "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", script, "down", folder], check=True, timeout=TEST_TIMEOUT)
