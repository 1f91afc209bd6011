"""The store's port is open where MASTER_ADDR says, and nowhere else."""

from __future__ import annotations

import socket

import pytest
import torch.distributed as dist

from lookaround_ddp.distributed.listening import listen
from tests.support.runs import free_port


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", f"{port}")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return port


def is_open(host: str, port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex((host, port)) == 0


def test_the_port_is_open_on_one_address_and_torch_takes_it(port: int) -> None:
    opened = listen(0)
    assert opened is not None
    assert is_open("127.0.0.1", port)
    assert not is_open("127.0.0.2", port)  # another address of this machine
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, multi_tenant=True)  # as torch does
    del opened
    store.set("key", "value")
    client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    assert client.get("key") == b"value"
    assert not is_open("127.0.0.2", port)


def test_a_port_in_use_is_told_as_torch_tells_it(port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(RuntimeError, match="EADDRINUSE"):
            listen(0)


@pytest.mark.parametrize(
    ("rank", "variables"),
    [
        (1, {}),
        (0, {"MASTER_ADDR": "localhost"}),  # a name
        (0, {"MASTER_ADDR": "0.0.0.0"}),
        (0, {"MASTER_ADDR": "192.0.2.1"}),  # no address of this machine
        (0, {"TORCHELASTIC_USE_AGENT_STORE": "True"}),
        (0, {"MASTER_PORT": "none"}),
    ],
)
def test_what_is_left_to_torch(
    port: int, monkeypatch: pytest.MonkeyPatch, rank: int, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert listen(rank) is None
