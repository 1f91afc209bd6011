"""Supervises torchrun: as the first process of a container, at a terminal, and on nodes that may be cut off.

Run as a file, as the launcher does, it imports no package: with torch it would hold 300 MB as long as a job lasts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
LOOK, LOOKS = 2.0, 6  # seconds between two looks at the head's port; so many in vain are enough
CONNECT = 3.0  # seconds


def main(head: str, port: str, *command: str) -> None:
    """Becomes torchrun, so that a signal reaches it once, whoever sends it, or stays and exits with its status.

    It stays as the first process of a container, which nothing in there can kill, and at a terminal, to hear of a
    second Ctrl-C.

    Args:
        head: node 0's host, if this is another node of several; else empty.
    """
    if os.getpid() == 1 or os.isatty(0):
        sys.exit(supervise(command, head, int(port)))
    watch(os.getpid(), head, int(port))
    os.execv(command[0], command)


def supervise(command: Sequence[str], head: str, port: int) -> int:
    """Runs torchrun, passes signals on to it, and returns its exit status as a shell has it.

    torchrun keeps a second Ctrl-C to itself, so its ranks are told of that from here, and leave at once.
    """
    torchrun = subprocess.Popen(command)
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        ranks = ranks_of(torchrun.pid)
        interrupts += bool(ranks)
        for pid, sent in signals_to_send(torchrun.pid, ranks, interrupts, os.isatty(0)).items():
            _send(pid, sent)

    for each in FORWARDED_SIGNALS:
        signal.signal(each, lambda number, frame: _send(torchrun.pid, number))
    signal.signal(signal.SIGINT, interrupt)
    watch(torchrun.pid, head, port)
    pid = -1
    while pid != torchrun.pid:  # a container's first process inherits others, which it asks for, too
        pid, status = os.wait()
    torchrun.returncode = os.waitstatus_to_exitcode(status)
    return exit_status(torchrun.returncode)


def signals_to_send(torchrun: int, ranks: Sequence[int], interrupts: int, terminal: bool) -> dict[int, signal.Signals]:
    """Returns which process is sent which signal after a Ctrl-C.

    Args:
        interrupts: how many there were since there are ranks.
        terminal: it came from a terminal, which tells torchrun itself.
    """
    if not ranks:  # it still starts
        return {torchrun: signal.SIGTERM}
    if interrupts > 1:
        return dict.fromkeys(ranks, signal.SIGINT)
    return {} if terminal else {torchrun: signal.SIGINT}


def watch(torchrun: int, head: str, port: int) -> None:
    """Starts a process that looks after this node's torchrun while that runs, unless `head` is empty."""
    if not head or os.fork() != 0:
        return
    try:
        for each in FORWARDED_SIGNALS:  # they are torchrun's
            signal.signal(each, signal.SIG_IGN)
        leave_when_cut_off(torchrun, head, port)
    finally:
        os._exit(0)


def leave_when_cut_off(torchrun: int, head: str, port: int) -> None:
    """Kills a torchrun whose ranks have ended and that does not reach the head: it would wait for minutes.

    Returns when torchrun has ended.
    """
    address = head
    with suppress(OSError):  # now: where nothing is reached a name server is not, either, which takes long
        address = socket.gethostbyname(head)
    started, missed = False, 0
    time.sleep(LOOK)
    while runs(torchrun):
        ranks = ranks_of(torchrun)
        started = started or bool(ranks)
        missed = 0 if not started or ranks or reachable(address, port) else missed + 1
        if missed == LOOKS:
            line = f"error: {head} cannot be reached at port {port}: start this node again when it can"
            print(line, file=sys.stderr, flush=True)
            _send(torchrun, signal.SIGKILL)
            return
        time.sleep(LOOK)


def reachable(host: str, port: int) -> bool:
    """Tells whether something listens there."""
    try:
        with socket.create_connection((host, port), CONNECT):
            return True
    except OSError:
        return False


def ranks_of(torchrun: int) -> list[int]:
    """Returns the processes that torchrun started and that still run, but not this one, its watch."""
    try:
        children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [pid for pid in map(int, children) if pid != os.getpid() and runs(pid)]


def runs(pid: int) -> bool:
    """Tells whether a process has not ended; one that its parent has not yet asked for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def exit_status(code: int) -> int:
    """Returns a shell's exit status of what subprocess calls -9: 137."""
    return code if code >= 0 else 128 - code


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(pid, number)


if __name__ == "__main__":
    main(*sys.argv[1:])
