"""What launch/torchrun.sh starts, whom it tells of signals, when it gives up; tests/system starts the real thing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lookaround_ddp.distributed import launcher
from lookaround_ddp.distributed.launcher import (
    Node,
    exit_status,
    lead_to_head,
    leave_when_cut_off,
    main,
    ranks_of,
    this_node,
    told,
    torchrun_options,
)
from lookaround_ddp.errors import UserError

COMMON = ["--rdzv-backend=c10d", "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
THREE = {"NNODES": "3", "NODE_RANK": "1", "HEAD": "host0"}


def test_options_of_one_node() -> None:
    """Not the host's own name, which may not resolve, and any free port."""
    own = ["--nnodes=1", "--nproc-per-node=2", "--max-restarts=3", "--local-addr=127.0.0.1"]
    assert sorted(torchrun_options(this_node({}), "2", "127.0.0.1", {})) == sorted(
        [*COMMON, *own, "--rdzv-endpoint=127.0.0.1:0"]
    )


@pytest.mark.parametrize(("rank", "is_host"), [("0", "true"), ("2", "false")])
def test_options_of_several_nodes(rank: str, is_host: str) -> None:
    """Variables that are set and empty count as unset."""
    environment = {**THREE, "NODE_RANK": rank, "NPROC": "4", "MAX_RESTARTS": "0", "PORT": "", "RDZV_ID": ""}
    own = ["--nnodes=3", "--nproc-per-node=4", "--max-restarts=0", "--local-addr=10.0.0.7"]
    meeting = ["--rdzv-endpoint=host0:29400", "--rdzv-id=lookaround", f"--rdzv-conf=is_host={is_host}"]
    options = torchrun_options(this_node(environment), "1", "10.0.0.7", environment)
    assert sorted(options) == sorted([*COMMON, *own, *meeting])


def test_the_port_and_the_name_of_the_meeting() -> None:
    environment = {**THREE, "PORT": "20001", "RDZV_ID": "7-0"}
    options = torchrun_options(this_node(environment), "1", "10.0.0.7", environment)
    assert {"--rdzv-endpoint=host0:20001", "--rdzv-id=7-0"} < set(options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"NODE_RANK": ""}, "NODE_RANK is not set: it counts the nodes from 0 on"),
        ({"HEAD": ""}, "HEAD is not set: it names the host of node 0"),
        ({"NODE_RANK": "host1"}, "the environment variable NODE_RANK is 'host1', which is no number"),
        ({"PORT": "http"}, "the environment variable PORT is 'http', which is no number"),
    ],
)
def test_mistakes(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        this_node({**THREE, **wrong})


def test_a_port_of_the_head_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node finds the head's port in use: that is what it hopes for."""
    monkeypatch.setattr(launcher, "way_to", lambda host: ("10.0.0.7", "eth0"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use.*set PORT on all nodes"):
            lead_to_head(Node(3, 0, "127.0.0.1", port))
        assert lead_to_head(Node(3, 1, "127.0.0.1", port)) == "10.0.0.7"
    assert lead_to_head(Node(3, 0, "127.0.0.1", port)) == "10.0.0.7"
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth0", "ib0")


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(launcher, "chosen_processes", lambda nodes, arguments: "1")
    monkeypatch.setattr(os, "environ", {"NNODES": "2", "NODE_RANK": "1"})
    with pytest.raises(SystemExit) as left:
        main(["config.yaml"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: HEAD is not set: it names the host of node 0\n"


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
    assert told(10, ranks, interrupts, terminal) == expected


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
    monkeypatch.setattr(launcher, "LOOK", 0)
    monkeypatch.setattr(launcher, "runs", runs)
    monkeypatch.setattr(launcher, "ranks_of", lambda torchrun: [11] if now == "r" else [])
    monkeypatch.setattr(launcher, "reachable", lambda host, port: now == "h")
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    leave_when_cut_off(10, Node(3, 1, "127.0.0.1", 7))
    assert sent == ([(10, signal.SIGKILL)] if killed else [])
    line = "error: 127.0.0.1 cannot be reached at port 7: start this node again when it can\n"
    assert capsys.readouterr().err == (line if killed else "")


BESIDE = "import sys; from lookaround_ddp.distributed.launcher import Node, stay_beside; "
TORCHRUN = """
import signal, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", '''
import signal
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
def beside() -> Iterator[subprocess.Popen[str]]:
    """A process that stays beside a torchrun of one rank; they print of the signals that they get."""
    command = [sys.executable, "-c", f"{BESIDE}sys.exit(stay_beside([sys.executable, '-c', {TORCHRUN!r}], Node()))"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait()


def test_a_first_process_passes_signals_on_and_has_torchruns_status(beside: subprocess.Popen[str]) -> None:
    assert beside.stdout is not None
    assert beside.stdout.readline() == "ready\n"
    time.sleep(0.5)  # torchrun gets its handlers
    for number, heard in ((signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGINT"), (signal.SIGINT, "rank")):
        beside.send_signal(number)
        assert beside.stdout.readline() == f"{heard}\n"
    beside.send_signal(signal.SIGTERM)
    assert beside.wait(20) == 7
