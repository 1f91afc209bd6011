"""What launch/torchrun.sh starts; tests/system starts the real thing."""

from __future__ import annotations

import os
import socket

import pytest

from lookaround_ddp.distributed import launcher
from lookaround_ddp.distributed.launcher import Node, lead_to_head, main, this_node, torchrun_options
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
    environment = {**THREE, "NODE_RANK": rank, "MAX_RESTARTS": "0", "PORT": "", "RDZV_ID": ""}
    own = ["--nnodes=3", "--nproc-per-node=4", "--max-restarts=0", "--local-addr=10.0.0.7"]
    meeting = ["--rdzv-endpoint=host0:29400", "--rdzv-id=lookaround", f"--rdzv-conf=is_host={is_host}"]
    options = torchrun_options(this_node(environment), "4", "10.0.0.7", environment)
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
