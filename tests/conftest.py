"""What several test modules share."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT

# by folder; all others are unit tests
TIERS = {"averaging": "ranks", "integrations": "ranks", "system": "system", "system/cluster": "cluster"}

LONG = (  # files, from the longest down
    *("test_readme", "test_slurm_jobs", "test_hosts", "test_faults", "test_odd_configs", "test_methods", "test_bench"),
    *("test_spoiled_files", "test_launcher", "test_precision", "test_resume", "test_reproduce", "test_preemption"),
)

os.environ["OMP_NUM_THREADS"] = "1"  # several ranks share few cores; two OpenMP threads each would thrash

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of a shell's &; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What processes leave that tests kill, and what torchrun always leaves, goes with the session. Pytest keeps its own.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="lookaround-tests-")
atexit.register(shutil.rmtree, tempfile.tempdir, ignore_errors=True)


TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the tier of its folder, and gives it the time that its processes may take.

    Files that take long come first: the last to begin would keep a core waiting.
    """
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        folders = [str(folder) for folder in item.path.relative_to(TESTS).parents]  # the innermost first
        item.add_marker(next((TIERS[folder] for folder in folders if folder in TIERS), "unit"))
        item.add_marker(pytest.mark.timeout(1.5 * TEST_TIMEOUT))


@pytest.fixture
def lookaround(tmp_path: Path) -> Path:
    """The folder of a finished run of three replicas."""
    from tests.support.records import lookaround_run  # torch reads the settings above when it is imported

    return lookaround_run(tmp_path)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """The folder of its baseline."""
    from tests.support.records import single_run

    return single_run(tmp_path)


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment for the launchers: this Python, marked as installed."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    with (TESTS.parent / "pyproject.toml").open() as file:
        (folder / "installed").write_text(subprocess.check_output(["cksum"], stdin=file, text=True).strip() + " ")
    return folder


@pytest.fixture(scope="session")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small finished runs to analyze, `lookaround` and `single`."""
    from tests.support.analyses import LOOKAROUND, SINGLE
    from tests.support.runs import train

    folder = tmp_path_factory.mktemp("analysed")
    train(folder / "lookaround", *LOOKAROUND)
    train(folder / "single", *SINGLE)
    return folder
