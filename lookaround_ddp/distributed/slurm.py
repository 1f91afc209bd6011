"""Support for ranks that srun started, one process for each task, without torchrun."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import MutableMapping


def adopt_step(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives the tasks of an srun step the variables that torchrun's ranks have.

    Does so only where a step has several tasks and torchrun is not there. In a batch script, or in a shell that salloc
    or srun opened, SLURM's variables speak of the allocation, and a program started there is one process.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or not tasks.isdigit() or int(tasks) < 2 or "SLURM_PROCID" not in environment:
        return
    hosts = environment["SLURM_STEP_NODELIST"]
    number = int(environment["SLURM_JOB_ID"]) * 7 + int(environment.get("SLURM_STEP_ID", "0"))
    environment.update(
        {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": tasks,
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(_tasks_of_node(environment)),
            "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(hosts),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + number % 20000),
        }
    )


def first_host(hosts: str) -> str:
    """Returns the first host of a list such as node[03-05,7],login1."""
    try:
        return subprocess.check_output(["scontrol", "show", "hostnames", hosts], text=True).split()[0]
    except (OSError, subprocess.CalledProcessError):  # no scontrol on the compute nodes
        return re.sub(r"^([^,\[]+)(?:\[(\w+)[^\]]*\])?.*", lambda match: match[1] + (match[2] or ""), hosts)


def _tasks_of_node(environment: MutableMapping[str, str]) -> int:
    """Returns this node's entry of SLURM_STEP_TASKS_PER_NODE; `2(x3),1` means 2, 2, 2, 1."""
    counts: list[int] = []
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, repeated = part.removesuffix(")").partition("(x")
        counts += [int(count)] * int(repeated or 1)
    return counts[int(environment["SLURM_NODEID"])]
