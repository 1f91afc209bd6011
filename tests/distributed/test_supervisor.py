"""Whom the supervisor of torchrun tells of signals, and when it gives up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookaround_ddp.distributed import supervisor
from lookaround_ddp.distributed.supervisor import exit_status, leave_when_cut_off, ranks_of, signals_to_send


@pytest.mark.parametrize(
    ("ranks", "interrupts", "terminal", "expected"),
    [
        ([], 0, True, {10: signal.SIGTERM}),
        ([], 0, False, {10: signal.SIGTERM}),
        ([11, 12], 1, True, {}),
        ([11, 12], 1, False, {10: signal.SIGINT}),
        ([11, 12], 2, True, {11: signal.SIGINT, 12: signal.SIGINT}),
        ([11], 3, False, {11: signal.SIGINT}),
    ],
)
def test_who_is_told_of_a_ctrl_c(
    ranks: list[int], interrupts: int, terminal: bool, expected: dict[int, signal.Signals]
) -> None:
    assert signals_to_send(10, ranks, interrupts, terminal) == expected


def test_statuses_as_a_shell_has_them() -> None:
    assert [exit_status(code) for code in (0, 2, -15)] == [0, 2, 143]


PARENT = """
import subprocess, sys
ended, lasts = subprocess.Popen(["true"]), subprocess.Popen(["sleep", "60"])
print(lasts.pid, flush=True)
sys.stdin.read()
lasts.kill()
"""


def test_ranks_are_the_children_that_still_run() -> None:
    """One that has ended, and that its parent has not asked for, is none."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        lasts = int(parent.stdout.readline())
        deadline = time.monotonic() + 20
        while ranks_of(parent.pid) != [lasts]:  # `true` takes a moment
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert parent.pid in ranks_of(os.getpid())
        parent.communicate("")
    assert ranks_of(parent.pid) == []


@pytest.mark.parametrize(
    ("looks", "killed"),
    [
        ("..........", False),  # it has no ranks yet
        ("r..........", True),
        ("r.....r.....", False),  # they were restarted
        ("r.....h.....", False),  # the head answered
        ("rrrrhhhh......", True),
    ],
)
def test_a_torchrun_is_killed_after_six_looks_in_vain(
    looks: str, killed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look finds ranks (r), a head that answers (h), or neither; after these torchrun ends by itself."""
    seen = iter(looks)
    now = ""

    def runs(torchrun: int) -> bool:
        nonlocal now
        now = next(seen, "")
        return now != ""

    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(supervisor, "LOOK", 0)
    monkeypatch.setattr(supervisor, "runs", runs)
    monkeypatch.setattr(supervisor, "ranks_of", lambda torchrun: [11] if now == "r" else [])
    monkeypatch.setattr(supervisor, "reachable", lambda host, port: now == "h")
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    leave_when_cut_off(10, "127.0.0.1", 7)
    assert sent == ([(10, signal.SIGKILL)] if killed else [])
    line = "error: 127.0.0.1 cannot be reached at port 7: start this node again when it can\n"
    assert capsys.readouterr().err == (line if killed else "")


TORCHRUN = """
import signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", '''
import signal
import socket
signal.signal(signal.SIGINT, lambda *_: print("rank", flush=True))
print("ready", flush=True)
while True: signal.pause()
'''], start_new_session=True)
for number in (signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: print(signal.Signals(number).name, flush=True))
def leave(number, frame):
    rank.kill()
    sys.exit(7)
signal.signal(signal.SIGTERM, leave)
while True: signal.pause()
"""


@pytest.fixture
def staying() -> Iterator[subprocess.Popen[str]]:
    """The supervisor of a torchrun of one rank; both print the signals that they get."""
    folder = Path(supervisor.__file__).parent
    code = f"import supervisor, sys; sys.exit(supervisor.supervise([sys.executable, '-c', {TORCHRUN!r}], '', 0))"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=folder)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait()


def test_a_first_process_passes_signals_on_and_has_torchruns_status(staying: subprocess.Popen[str]) -> None:
    assert staying.stdout is not None
    assert staying.stdout.readline() == "ready\n"
    time.sleep(0.5)  # torchrun gets its handlers
    for number, heard in ((signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGINT"), (signal.SIGINT, "rank")):
        staying.send_signal(number)
        assert staying.stdout.readline() == f"{heard}\n"
    staying.send_signal(signal.SIGTERM)
    assert staying.wait(20) == 7


CUT_OFF = "import subprocess, time; subprocess.run(['sleep', '1']); print('ended', flush=True); time.sleep(60)"


def test_a_node_that_is_cut_off_is_killed_by_its_watch() -> None:
    """The process becomes torchrun, so that its number is torchrun's; the watch is a child of it and no rank."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        arguments = ["127.0.0.1", str(port), sys.executable, "-c", CUT_OFF]
        code = f"import supervisor; supervisor.LOOK = 0.1; supervisor.main(*{arguments})"
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(supervisor.__file__).parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ended\n"
            time.sleep(1.5)  # more than six looks at a head that answers
            assert process.poll() is None
            head.close()
            _, said = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGKILL
    assert said == f"error: 127.0.0.1 cannot be reached at port {port}: start this node again when it can\n"
