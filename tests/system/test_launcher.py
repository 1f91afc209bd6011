"""What launch/torchrun.sh says last, and with which status it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT
from tests.support.processes import descendants, kill, parent
from tests.support.runs import ROOT, TINY

LONG = (*TINY, "epochs=100000", "record.every=1", "evaluate.every=99999", "checkpoint.every=99999")


def launch(venv: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts two ranks, in a session of their own, as from a batch system."""
    own = {"VENV": str(venv), "NPROC": "2", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        ["bash", "launch/torchrun.sh", *arguments],
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(job: subprocess.Popen[str], path: Path) -> None:
    """Returns when a run has written three lines of its record."""
    deadline = time.monotonic() + TEST_TIMEOUT
    while not path.exists() or path.read_text().count("\n") < 3:
        assert job.poll() is None, job.stdout and job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_in_our_line(venv: Path, tmp_path: Path, number: signal.Signals) -> None:
    """130 after Ctrl-C, 143 after SIGTERM."""
    with launch(venv, f"out={tmp_path}/run", *LONG) as job:
        wait_for_lines(job, tmp_path / "run" / "metrics.jsonl")
        job.send_signal(number)
        said, _ = job.communicate(timeout=TEST_TIMEOUT)
    last = said.splitlines()[-1]
    assert last.startswith(f"{number.name}: saved after iteration "), said
    assert last.endswith("; the same command goes on")
    assert job.returncode == 128 + number
    assert "Traceback" not in said
    assert "torch.distributed" not in said


def test_a_rank_that_is_killed_for_good(venv: Path, tmp_path: Path) -> None:
    with launch(venv, f"out={tmp_path}/run", *LONG, MAX_RESTARTS="0") as job:
        wait_for_lines(job, tmp_path / "run" / "metrics.jsonl")
        ranks = [pid for pid in descendants(job.pid) if parent(pid) == job.pid]
        kill(ranks[0])
        said, _ = job.communicate(timeout=TEST_TIMEOUT)
    assert job.returncode == 1
    assert "of this node was killed by SIGKILL. Start the same command" in said
    assert "Traceback" not in said
    assert "torch.distributed" not in said


def test_processes_that_cannot_share_the_replicas(venv: Path, tmp_path: Path) -> None:
    with launch(venv, f"out={tmp_path}/run", *TINY, NPROC="5") as job:
        said, _ = job.communicate(timeout=TEST_TIMEOUT)
    assert job.returncode == 2
    assert said == "error: 5 processes cannot share 3 replicas: start at most 3, or a multiple of 3\n"


def test_a_mistake_that_only_ranks_can_find(venv: Path, tmp_path: Path) -> None:
    """The folder of the run is a file when the ranks make it, and was not there before."""
    out = tmp_path / "run"
    code = f"import pathlib; pathlib.Path({str(out)!r}).write_text('')"
    (tmp_path / "sitecustomize.py").write_text(f"import os\nif 'TORCHELASTIC_RUN_ID' in os.environ:\n    {code}\n")
    with launch(venv, f"out={out}", *TINY, MAX_RESTARTS="0", PYTHONPATH=str(tmp_path)) as job:
        said, _ = job.communicate(timeout=TEST_TIMEOUT)
    assert job.returncode == 2
    assert said == f"error: {out}: File exists (rank 0)\n"


@pytest.mark.parametrize(("has_it", "status"), [(True, 0), (False, 2)])
def test_an_environment_of_somebody_else(tmp_path: Path, has_it: bool, status: int) -> None:
    """It is used as it is, or refused; nothing is installed into it."""
    (tmp_path / "bin").mkdir()
    for name, program in (("python", f"exit {0 if has_it else 1}"), ("pip", "touch $0.called")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = "set -e; source launch/environment.sh; echo python: $python"
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=os.environ | {"VENV": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stdout == (f"python: {tmp_path}/bin/python\n" if has_it else "")
    assert ("install it there yourself" in done.stderr) == (not has_it)
    assert not (tmp_path / "bin" / "pip.called").exists()
    assert not (tmp_path / "installed").exists()


def test_a_relative_environment(tmp_path: Path) -> None:
    """The scripts go to the clone, and find it all the same; so do those that they call."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "env" / "bin" / "python").chmod(0o755)
    script = f"set -e; source {ROOT}/launch/environment.sh; cd /; $python; bash -c 'echo $VENV'"
    environment = os.environ | {"VENV": "env"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/env\n"), done.stderr


@pytest.mark.parametrize("config", ["digits/resnet8-lookaround", "configs/digits/resnet8-lookaround.yaml"])
def test_a_container_gets_a_config_by_its_name(config: str, tmp_path: Path) -> None:
    """An engine that only says what it was asked for."""
    environment = os.environ | {"ENGINE": "echo", "RUNS": str(tmp_path / "runs"), "DATA": str(tmp_path / "data")}
    command = ["bash", "launch/docker.sh", config, "epochs=3"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{ROOT}/configs:/workspace/configs:ro lookaround_ddp /workspace/configs/digits/resnet8-" in done.stdout
    assert done.stdout.endswith("lookaround.yaml data.root=/workspace/data epochs=3\n")
