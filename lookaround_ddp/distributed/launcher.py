"""Starts this node's ranks under torchrun, for launch/torchrun.sh, which names the variables that are read here.

python -m lookaround_ddp.distributed.launcher CONFIG [key.path=value ...]

Mostly this process becomes torchrun, so that a signal reaches it once, whoever sends it. It stays beside torchrun as
the first process of a container, which nothing in there can kill, and at a terminal, to hear of a second Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lookaround_ddp.distributed.network import way_to
from lookaround_ddp.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # a lost connection is told in a line, not in 30 frames
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",  # seconds to save after a signal; 30 by default
}
LOOK, LOOKS = 2.0, 6  # seconds between two looks at the head's port; so many in vain are enough
CONNECT = 3.0  # seconds


@dataclass(frozen=True)
class Node:
    """Which of how many machines this is, and where node 0 listens (`head` is empty of a job of one node)."""

    nodes: int = 1
    rank: int = 0
    head: str = ""
    port: int = 29400


def main(arguments: Sequence[str]) -> None:
    """Becomes torchrun, or stays beside it and exits with its status; a user's mistake is one line, and status 2."""
    for name, value in DEFAULTS.items():
        os.environ[name] = os.environ.get(name) or value
    # without it, ranks that were restarted mostly read stale addresses from the store (torch 2.14)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        processes = chosen_processes(os.environ.get("NNODES") or "1", arguments)
        node = this_node(os.environ)
        address = "127.0.0.1" if node.nodes == 1 else lead_to_head(node)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    if node.nodes > 1:
        os.environ["LOOKAROUND_NODES"] = str(node.nodes)  # `join` compares it with those that came
    options = torchrun_options(node, processes, address, os.environ)
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "lookaround_ddp", "train", *arguments]
    if os.getpid() == 1 or os.isatty(0):
        sys.exit(stay_beside(command, node))
    watch(os.getpid(), node)
    os.execv(command[0], command)


def chosen_processes(nodes: str, arguments: Sequence[str]) -> str:
    """Returns how many ranks this node should have, which another process says that rehearses the training.

    It says itself what it refuses; this process then exits with its status.
    """
    command = [sys.executable, "-m", "lookaround_ddp", "processes", "--nodes", nodes, *arguments]
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal tells both, and the other says something to it
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if done.returncode != 0:
        sys.exit(exit_status(done.returncode))
    return done.stdout.split()[0]


def this_node(environment: Mapping[str, str]) -> Node:
    """Returns what NNODES, NODE_RANK, HEAD and PORT say.

    Raises:
        UserError: one of them is missing in a job of several nodes, or is no number.
    """
    nodes = _number(environment, "NNODES", "1")
    if nodes == 1:
        return Node()
    for name, meaning in (("NODE_RANK", "counts the nodes from 0 on"), ("HEAD", "names the host of node 0")):
        if not environment.get(name):
            raise UserError(f"{name} is not set: it {meaning}")
    return Node(
        nodes, _number(environment, "NODE_RANK", ""), environment["HEAD"], _number(environment, "PORT", "29400")
    )


def _number(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name) or default
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} is {text!r}, which is no number")
    return int(text)


def lead_to_head(node: Node) -> str:
    """Returns this machine's address on the way to node 0, and exports the interface for gloo and NCCL.

    Raises:
        UserError: something listens where node 0 is about to; no way is to be seen.
    """
    if node.rank == 0 and reachable(node.head, node.port):
        where = f"port {node.port} of {node.head}"
        raise UserError(f"{where} is in use, perhaps by another training: set PORT on all nodes")
    address, interface = way_to(node.head)  # a host's own name may mean 127.0.1.1
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = os.environ.get(name) or interface
    return address


def torchrun_options(node: Node, processes: str, address: str, environment: Mapping[str, str]) -> list[str]:
    """Returns torchrun's options for this node.

    Args:
        processes: ranks of this node, unless NPROC says another number.
        address: this machine's, as the others reach it.
    """
    options = [
        "--rdzv-backend=c10d",
        f"--nnodes={node.nodes}",
        f"--nproc-per-node={environment.get('NPROC') or processes}",
        f"--max-restarts={environment.get('MAX_RESTARTS') or 3}",
        f"--signals-to-handle={','.join(number.name for number in SIGNALS)}",
        f"--local-addr={address}",
    ]
    if node.nodes == 1:  # not --standalone, which hangs where the host's own name does not resolve
        return [*options, f"--rdzv-endpoint={address}:0"]
    return [
        *options,
        f"--rdzv-endpoint={node.head}:{node.port}",
        f"--rdzv-id={environment.get('RDZV_ID') or 'lookaround'}",
        f"--rdzv-conf=is_host={'true' if node.rank == 0 else 'false'}",
    ]


def reachable(host: str, port: int) -> bool:
    """Tells whether something listens there."""
    try:
        with socket.create_connection((host, port), CONNECT):
            return True
    except OSError:
        return False


def stay_beside(command: Sequence[str], node: Node) -> int:
    """Runs torchrun, passes signals on to it, and returns its exit status as a shell has it.

    torchrun keeps a second Ctrl-C to itself, so its ranks are told of that from here, and leave at once.
    """
    torchrun = subprocess.Popen(command)
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        ranks = ranks_of(torchrun.pid)
        interrupts += bool(ranks)
        for pid, sent in told(torchrun.pid, ranks, interrupts, os.isatty(0)).items():
            _send(pid, sent)

    for each in SIGNALS:
        signal.signal(each, lambda number, frame: _send(torchrun.pid, number))
    signal.signal(signal.SIGINT, interrupt)
    watch(torchrun.pid, node)
    pid = -1
    while pid != torchrun.pid:  # a container's first process inherits others, which it asks for, too
        pid, status = os.wait()
    torchrun.returncode = os.waitstatus_to_exitcode(status)
    return exit_status(torchrun.returncode)


def told(torchrun: int, ranks: Sequence[int], interrupts: int, terminal: bool) -> dict[int, signal.Signals]:
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


def exit_status(code: int) -> int:
    """Returns a shell's exit status of what subprocess calls -9: 137."""
    return code if code >= 0 else 128 - code


def watch(torchrun: int, node: Node) -> None:
    """Starts a process that looks after this node's torchrun while that runs; node 0, the head, needs none."""
    if node.rank == 0 or os.fork() != 0:
        return
    try:
        for each in SIGNALS:  # they are torchrun's
            signal.signal(each, signal.SIG_IGN)
        leave_when_cut_off(torchrun, node)
    finally:
        os._exit(0)


def leave_when_cut_off(torchrun: int, node: Node) -> None:
    """Kills a torchrun whose ranks have ended and that does not reach the head: it would wait for minutes.

    Returns when torchrun has ended.
    """
    head = node.head
    with suppress(OSError):  # now: where nothing is reached a name server is not, either, which takes long
        head = socket.gethostbyname(head)
    started, missed = False, 0
    while runs(torchrun):
        time.sleep(LOOK)
        ranks = ranks_of(torchrun)
        started = started or bool(ranks)
        missed = 0 if not started or ranks or reachable(head, node.port) else missed + 1
        if missed == LOOKS:
            where = f"{node.head} cannot be reached at port {node.port}"
            print(f"error: {where}: start this node again when it can", file=sys.stderr, flush=True)
            _send(torchrun, signal.SIGKILL)
            return


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


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself meanwhile
        os.kill(pid, number)


if __name__ == "__main__":
    main(sys.argv[1:])
