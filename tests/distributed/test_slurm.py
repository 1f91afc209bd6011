"""SLURM's variables, as its manual gives them, become torchrun's; tests/system/cluster starts the real thing."""

from __future__ import annotations

import pytest

from lookaround_ddp.distributed.slurm import adopt_step, first_host
from lookaround_ddp.errors import UserError

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "node[03-05,7]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
}
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def adopted(**changed: str) -> list[str | None]:
    environment = STEP | changed
    adopt_step(environment)
    return [environment.get(name) for name in NAMES]


def test_tasks_of_a_step_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is of job and step: 20000 + (1234 * 7 + 2) mod 20000."""
    monkeypatch.setenv("PATH", "")  # no scontrol
    assert adopted() == ["6", "7", "0", "1", "node03", "28640"]
    assert adopted(SLURM_NODEID="2", SLURM_PROCID="5", SLURM_LOCALID="1")[:4] == ["5", "7", "1", "2"]
    assert adopted(MASTER_ADDR="head", MASTER_PORT="7")[4:] == ["head", "7"]


def test_what_is_no_step_of_several_tasks_stays_one_process() -> None:
    """A step of one task; a batch script and salloc's shell, where a step's variables are not set; torchrun."""
    assert adopted(SLURM_STEP_NUM_TASKS="1") == [None] * 6
    environment = {key: value for key, value in STEP.items() if "STEP" not in key}
    adopt_step(environment)
    assert "RANK" not in environment
    assert adopted(RANK="1", WORLD_SIZE="3") == ["1", "3", None, None, None, None]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SLURM_STEP_NODELIST", None, "'SLURM_STEP_NODELIST' is not set"),
        ("SLURM_JOB_ID", None, "'SLURM_JOB_ID' is not set"),
        ("SLURM_LOCALID", "x", "invalid literal for int"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x)", "out of range"),
        ("SLURM_NODEID", "9", "index out of range"),
    ],
)
def test_a_step_without_some_of_its_variables(name: str, value: str | None, said: str) -> None:
    environment = {key: text for key, text in (STEP | {name: value}).items() if text is not None}
    with pytest.raises(UserError, match=f"SLURM_STEP_NUM_TASKS is 7, and .*{said}.*start the ranks with srun"):
        adopt_step(environment)
    assert "RANK" not in environment


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node[03-05,7]", "node03"), ("a1,b2", "a1"), ("gpu-7", "gpu-7"), ("n[9,12],m1", "n9")],
)
def test_the_first_host_without_scontrol(hosts: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert first_host(hosts) == first
