"""The trainer and the loops beside it, each in a fresh process that is ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from lookaround_ddp.bench import figures as machine
from lookaround_ddp.errors import MISTAKE, UserError

GRACE = 15  # seconds that torchrun has to end its ranks


def run_module(arguments: Sequence[str]) -> str:
    """Runs `python -m ARGUMENTS` with one thread per process; returns its standard output.

    Raises:
        UserError: the trainer called something a mistake.
        RuntimeError: it failed otherwise.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.rank_environment(threads=1),
        start_new_session=True,  # Ctrl-C is this process's to handle, and the group can be ended as one
    )
    try:
        output, errors = process.communicate()
    finally:
        _end_process(process)
    if process.returncode == 0:
        return output
    mistakes = [line for line in errors.splitlines() if line.startswith("error: ")]
    if process.returncode == MISTAKE and mistakes:
        raise UserError(mistakes[0].removeprefix("error: "))
    raise RuntimeError(f"python -m {' '.join(arguments)} failed with {process.returncode}:\n{errors[-4000:]}")


def _end_process(process: subprocess.Popen[str]) -> None:
    """Ends a process that still runs, and its children: torchrun's ranks are in sessions of their own."""
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
