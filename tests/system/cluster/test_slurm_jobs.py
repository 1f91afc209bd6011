"""The real sbatch file on a real, small SLURM cluster."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT, train, weights

# Two replicas, whom two nodes share; an epoch of 5 iterations
TINY = ("data.train_images=80", "data.batch_size=16", "average.k=3", "model.width=4", "evaluate.every=99")
TINY = (*TINY, "replicas=[[crop],[rotation]]", "checkpoint.every=99", "record.every=5", "checkpoint.grace_seconds=4")


class Slurm:
    """The commands of a cluster, and the jobs' output."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
        ).stdout

    def submit(self, *arguments: str, options: tuple[str, ...] = ("--nodes=2",)) -> str:
        output = f"--output={self.folder}/%A-%a.txt"
        return self.run("sbatch", "--parsable", output, *options, "launch/slurm.sbatch", *arguments).strip()

    def states(self, job: str) -> dict[str, str]:
        """The state of each task of a job's array, or of the job."""
        found = {}
        for block in self.run("scontrol", "show", "job", job).split("\n\n"):
            state, task = re.search(r"JobState=(\w+)", block), re.search(r"ArrayTaskId=(\d+)", block)
            if state:
                found[task[1] if task else ""] = state[1]
        return found

    def wait(self, job: str, timeout: float = TEST_TIMEOUT) -> dict[str, str]:
        """The states when nothing pends or runs any more."""
        deadline = time.monotonic() + timeout
        while not set(states := self.states(job).values()) <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}:
            assert time.monotonic() < deadline, f"{states}: {self.said()}"
            time.sleep(0.5)
        return self.states(job)

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.txt")))


@pytest.fixture
def slurm(cluster: dict[str, str], tmp_path: Path) -> Slurm:
    return Slurm(cluster, tmp_path)


def until_it_trains(out: Path, lines: int = 2, timeout: float = TEST_TIMEOUT) -> None:
    deadline = time.monotonic() + timeout
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def config(folder: Path) -> Path:
    """A file, as people submit it."""
    path = folder / "config.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in (("epochs", 4), ("out", folder / "run"))))
    return path


def test_a_job_on_two_nodes_trains_to_the_end(slurm: Slurm, tmp_path: Path) -> None:
    """Its weights are those of one process."""
    job = slurm.submit(str(config(tmp_path)), *TINY)
    assert slurm.wait(job) == {"": "COMPLETED"}, slurm.said()
    assert "2 replicas, k = 3, on 2 processes" in slurm.said()
    train(tmp_path / "alone", "epochs=4", *TINY)
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")


def test_a_job_that_runs_out_of_time_is_requeued_and_goes_on(slurm: Slurm, tmp_path: Path) -> None:
    """USR1 as the time limit sends it, to the batch script alone. The weights are those of an undisturbed run."""
    long = (*TINY, "epochs=120")
    job = slurm.submit(str(config(tmp_path)), *long)
    until_it_trains(tmp_path / "run")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    deadline = time.monotonic() + TEST_TIMEOUT
    while "Restarts=1" not in slurm.run("scontrol", "show", "job", job):
        assert time.monotonic() < deadline, slurm.said()
        time.sleep(0.2)
    assert slurm.wait(job) == {"": "COMPLETED"}, slurm.said()
    assert re.search(r"time is nearly up: requeued. SIGUSR1: saved after iteration \d+;", slurm.said())
    assert re.search(r"resumed after iteration \d+", slurm.said())
    train(tmp_path / "alone", *long)
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")


def test_scancel_leaves_a_checkpoint_to_go_on_from(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(str(config(tmp_path)), *TINY, "epochs=3000")
    until_it_trains(tmp_path / "run")
    slurm.run("scancel", job)
    assert slurm.wait(job) == {"": "CANCELLED"}
    deadline = time.monotonic() + TEST_TIMEOUT
    while not (tmp_path / "run" / "PREEMPTED").exists():
        assert time.monotonic() < deadline, slurm.said()
        time.sleep(0.2)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name.isdigit()
    assert int(checkpoint.name) > 0


def test_an_array_over_seeds_is_one_row_of_the_report(slurm: Slurm, tmp_path: Path) -> None:
    job = slurm.submit(str(config(tmp_path)), *TINY, options=("--nodes=1", "--array=0-2"))
    assert slurm.wait(job) == dict.fromkeys("012", "COMPLETED"), slurm.said()
    runs = [str(tmp_path / f"run-s{seed}") for seed in range(3)]
    python = f"{slurm.environment['VENV']}/bin/python"
    table = slurm.run(python, "-m", "lookaround_ddp", "report", "--brief", *runs).splitlines()
    assert len(table) == 3
    assert [cell.strip() for cell in table[2].split("|")][1:6:4] == ["`run`: mean model", "3"]


def test_a_task_of_an_array_that_runs_out_of_time_is_requeued_alone(slurm: Slurm, tmp_path: Path) -> None:
    """The task whose job has the array's own number; commands that name that would mean all tasks."""
    array = slurm.submit(str(config(tmp_path)), *TINY, "epochs=150", options=("--nodes=1", "--array=0-1"))
    for seed in (0, 1):
        until_it_trains(tmp_path / f"run-s{seed}")
    blocks = slurm.run("scontrol", "show", "job", array).split("\n\n")
    (first,) = (re.search(r"ArrayTaskId=(\d+)", block)[1] for block in blocks if block.startswith(f"JobId={array} "))
    slurm.run("scancel", "--batch", "--signal=USR1", f"{array}_{first}")
    assert slurm.wait(array) == dict.fromkeys("01", "COMPLETED"), slurm.said()
    restarts = {}
    for block in slurm.run("scontrol", "show", "job", array).split("\n\n"):
        if task := re.search(r"ArrayTaskId=(\d+)", block):
            restarts[task[1]] = re.search(r"Restarts=(\d+)", block)[1]
    assert restarts == {first: "1", {"0": "1", "1": "0"}[first]: "0"}
    assert slurm.said().count("time is nearly up: requeued") == 1


def test_a_task_for_each_rank_without_torchrun(slurm: Slurm, tmp_path: Path) -> None:
    """`srun python -m lookaround_ddp train` on two nodes; and a task alone is no world."""
    python = f"{slurm.environment['VENV']}/bin/python"
    train(tmp_path / "alone", "epochs=4", *TINY)
    for name, options in (("two", ("-N2", "-n2")), ("one", ("-N1", "-n1"))):
        command = ("-m", "lookaround_ddp", "train", f"out={tmp_path}/{name}", "epochs=4", *TINY)
        slurm.run("srun", *options, python, *command)
        assert weights(tmp_path / name) == weights(tmp_path / "alone")


SEEN = """
import os
from pathlib import Path

class Seen:
    '''An augmentation that does nothing, and whose maker writes down which GPUs SLURM shows to its rank.'''

    def __init__(self, folder):
        told = ("SLURM_NODEID", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")
        if "RANK" in os.environ:
            text = " ".join(os.environ[name] for name in told)
            Path(folder, os.environ["RANK"] + ".seen").write_text(text)

    def __call__(self, image):
        return image
"""


@pytest.mark.parametrize(
    ("start", "options", "seen"),
    [
        ("sbatch", ("--nodes=2", "--gpus-per-node=2"), ["0 0 1 2 0,1", "1 0 1 2 0,1"]),
        ("srun", ("-N2", "-n2", "--gpus-per-node=2"), ["0 0 1 2 0,1", "1 0 1 2 0,1"]),
        ("srun", ("-N1", "-n2", "--gpus-per-task=1"), ["0 0 2 2 0", "0 1 2 2 1"]),
    ],
)
def test_each_rank_is_shown_the_gpus_of_its_node(
    slurm: Slurm, tmp_path: Path, start: str, options: tuple[str, ...], seen: list[str]
) -> None:
    """The nodes' two GPUs only look like some, so the ranks train on CPUs, one for each node."""
    (tmp_path / "seen.py").write_text(SEEN)
    slurm.environment = {**slurm.environment, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    own = f"{{seen.Seen: {{folder: {tmp_path}}}}}"
    arguments = (str(config(tmp_path)), *TINY, f"replicas=[[{own}],[crop,{own}]]")
    if start == "sbatch":
        assert slurm.wait(slurm.submit(*arguments, options=options)) == {"": "COMPLETED"}, slurm.said()
    else:
        slurm.run(
            "srun", *options, f"{slurm.environment['VENV']}/bin/python", "-m", "lookaround_ddp", "train", *arguments
        )
    # Sorted by node, since torchrun may give rank 0 to either node.
    assert sorted(path.read_text() for path in tmp_path.glob("*.seen")) == seen
