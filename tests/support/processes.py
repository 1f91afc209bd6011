"""A training under torchrun, and its processes as the kernel shows them in /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def start(said: Path, *arguments: str, ranks: int, through: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts `train ARGUMENTS` as launch/torchrun.sh does on one machine; `said` gets what it says, at its end.

    Args:
        through: a command that runs it in surroundings of its own, and has its process number.
    """
    options = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1")
    command = [*through, sys.executable, "-m", "torch.distributed.run", *options, f"--nproc-per-node={ranks}"]
    command += ["-m", "lookaround_ddp", "train", *arguments]
    with said.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return subprocess.Popen(command, stdout=file, stderr=file, text=True, env=environment)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started, which still run."""
    found = children(pid)
    for child in found:  # grows meanwhile
        found += children(child)
    return found


def children(pid: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent(int(name)) == pid]


def loader_workers(rank: int) -> list[int]:
    """Those that a rank forked, or the server that it started for that; in the order in which they were started."""
    helpers = [pid for pid in children(rank) if command(pid) != command(rank)]  # what is forked keeps its command
    return sorted(pid for pid in descendants(rank) if pid not in helpers)


def command(pid: int) -> str:
    """Empty of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def parent(pid: int) -> int:
    """-1 of a process that has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that its parent has not yet asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(pid, number)
