"""Commands that are run in processes of their own, one at a time, and told of signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType

from lookaround_ddp.config import Config
from lookaround_ddp.distributed import processes_here
from lookaround_ddp.distributed.launcher import DEFAULTS, Node, torchrun_options
from lookaround_ddp.distributed.supervisor import FORWARDED_SIGNALS, exit_status
from lookaround_ddp.errors import status_of_signal


def start_training(arguments: Sequence[str]) -> int:
    """Trains on all devices that the replicas can share; returns the launcher's exit status."""
    return run_child([sys.executable, "-m", "lookaround_ddp.distributed.launcher", *arguments], os.environ)


def score(config: Config, arguments: Sequence[str]) -> int:
    """Runs a command that scores runs, on as many devices as one of them was trained on; returns its exit status."""
    processes = processes_here(config)
    options = torchrun_options(Node(), str(processes), "127.0.0.1", {"MAX_RESTARTS": "0"})
    through = ["-m", "lookaround_ddp.distributed.agent", *options] if processes > 1 else []
    command = [sys.executable, *through, "-m", "lookaround_ddp", *arguments]
    return run_child(command, {**DEFAULTS, **os.environ})


def run_child(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs a command to its end and returns its exit status; passes signals on to it.

    Raises:
        KeyboardInterrupt: it was interrupted, and has ended.
        SystemExit: this process was told to end by another signal, and the command has ended.
    """
    told: list[int] = []
    early: list[int] = []  # before there was a child
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if child is None:
            early.append(number)
        elif not (number == signal.SIGINT and os.isatty(0)):  # a terminal tells all
            with suppress(ProcessLookupError):  # it ended by itself meanwhile
                child.send_signal(number)

    before = {number: signal.getsignal(number) for number in FORWARDED_SIGNALS}
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, pass_on)
    try:
        child = subprocess.Popen(command, env=environment)
        for missed in early:
            with suppress(ProcessLookupError):
                child.send_signal(missed)
        status = exit_status(child.wait())
    finally:
        for number in ours:
            signal.signal(number, before[number])
    if signal.SIGINT in told or status == status_of_signal(signal.SIGINT):
        raise KeyboardInterrupt
    if told:
        sys.exit(status_of_signal(told[0]))
    return status
