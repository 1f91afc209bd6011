"""Starts this node's ranks under torchrun, for launch/torchrun.sh, which names the variables that are read here.

python -m lookaround_ddp.distributed.launcher CONFIG [key.path=value ...]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lookaround_ddp.distributed import supervisor
from lookaround_ddp.distributed.environment import number_in
from lookaround_ddp.distributed.network import way_to
from lookaround_ddp.distributed.supervisor import FORWARDED_SIGNALS, exit_status, reachable
from lookaround_ddp.errors import MISTAKE, UserError, status_of_signal

DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # a lost connection is told in a line, not in 30 frames
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",  # seconds to save after a signal; 30 by default
}


@dataclass(frozen=True)
class Node:
    """Which of how many machines this is, and where node 0 listens (`head` is empty of a job of one node)."""

    nodes: int = 1
    rank: int = 0
    head: str = ""
    port: int = 29400


def main(arguments: Sequence[str]) -> None:
    """Becomes torchrun, or its supervisor; a user's mistake is one line, and status 2. See `agent`."""
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
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        sys.exit(status_of_signal(signal.SIGINT))
    if node.nodes > 1:
        os.environ["LOOKAROUND_NODES"] = str(node.nodes)  # `join` compares it with those that came
    options = torchrun_options(node, processes, address, os.environ)
    command = [
        sys.executable,
        "-m",
        "lookaround_ddp.distributed.agent",
        *options,
        "-m",
        "lookaround_ddp",
        "train",
        *arguments,
    ]
    head = node.head if node.rank > 0 else ""
    os.execv(sys.executable, [sys.executable, "-I", supervisor.__file__, head, str(node.port), *command])


def chosen_processes(nodes: str, arguments: Sequence[str]) -> str:
    """Returns how many ranks this node should have, which the process that runs the preflight says.

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
    nodes = number_in(environment, "NNODES", "1")
    if nodes == 1:
        return Node()
    for name, meaning in (("NODE_RANK", "counts the nodes from 0 on"), ("HEAD", "names the host of node 0")):
        if not environment.get(name):
            raise UserError(f"{name} is not set: it {meaning}")
    return Node(
        nodes, number_in(environment, "NODE_RANK", ""), environment["HEAD"], number_in(environment, "PORT", "29400")
    )


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
        processes: ranks of this node.
        address: this machine's, as the others reach it.
    """
    options = [
        "--rdzv-backend=c10d",
        f"--nnodes={node.nodes}",
        f"--nproc-per-node={processes}",
        f"--max-restarts={environment.get('MAX_RESTARTS') or 3}",
        f"--signals-to-handle={','.join(number.name for number in FORWARDED_SIGNALS)}",
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


if __name__ == "__main__":
    main(sys.argv[1:])
