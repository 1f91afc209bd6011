"""Support for ranks that srun started, one process for each task, without torchrun."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, MutableMapping

from lookaround_ddp.errors import UserError


def adopt_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives the tasks of an srun step the variables that torchrun's ranks have.

    Does so only where a step has several tasks and torchrun is not there. In a batch script, or in a shell that salloc
    or srun opened, SLURM's variables speak of the allocation, and a program started there is one process.

    Raises:
        UserError: some of the step's variables are missing, or no numbers.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or not tasks.isdigit() or int(tasks) < 2 or "SLURM_PROCID" not in environment:
        return
    try:
        environment.update(_as_torchrun_has_them(environment))
    except (KeyError, ValueError, IndexError) as error:
        what = f"{error} is not set" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"SLURM_STEP_NUM_TASKS is {tasks}, and the step's other variables do not go with it ({what}): start the "
            "ranks with srun or torchrun, or unset it for one process"
        ) from None


def _as_torchrun_has_them(step: Mapping[str, str]) -> dict[str, str]:
    """Returns a task's variables. Raises KeyError, ValueError or IndexError where those of its step lack something."""
    number = int(step["SLURM_JOB_ID"]) * 7 + int(step.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": str(int(step["SLURM_PROCID"])),
        "WORLD_SIZE": step["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": str(int(step["SLURM_LOCALID"])),
        "LOCAL_WORLD_SIZE": str(_tasks_of_node(step)),
        "MASTER_ADDR": step.get("MASTER_ADDR") or first_host(step["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": step.get("MASTER_PORT") or str(20000 + number % 20000),
    }


def first_host(hosts: str) -> str:
    """Returns the first host of a list such as node[03-05,7],login1."""
    try:
        return subprocess.check_output(["scontrol", "show", "hostnames", hosts], text=True).split()[0]
    except (OSError, subprocess.CalledProcessError):  # no scontrol on the compute nodes
        return re.sub(r"^([^,\[]+)(?:\[(\w+)[^\]]*\])?.*", lambda match: match[1] + (match[2] or ""), hosts)


def _tasks_of_node(environment: Mapping[str, str]) -> int:
    """Returns this node's entry of SLURM_STEP_TASKS_PER_NODE; `2(x3),1` means 2, 2, 2, 1."""
    counts: list[int] = []
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, repeated = part.removesuffix(")").partition("(x")
        counts += [int(count)] * int(repeated or 1)
    return counts[int(environment["SLURM_NODEID"])]
