"""The interface that leads to a host, on machines that are told of, not had."""

from __future__ import annotations

import socket

import pytest

from lookaround_ddp.distributed import network
from lookaround_ddp.distributed.network import interfaces, way_to
from lookaround_ddp.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with two interfaces, on which everything leads over 10.0.0.5."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"})
    own(monkeypatch, "10.0.0.5")
    return monkeypatch


def own(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda self, target: None)
    monkeypatch.setattr(socket.socket, "getsockname", lambda self: (address, 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [(0, 0, 0, "", ("10.0.0.9", 9))])


def test_the_interface_with_the_address_that_the_way_begins_at(machine: pytest.MonkeyPatch) -> None:
    assert way_to("head") == ("10.0.0.5", "eth0")


def test_a_name_that_means_the_machine_itself(machine: pytest.MonkeyPatch) -> None:
    """Debian's 127.0.1.1: with one interface it is that one, with two somebody must say."""
    own(machine, "127.0.1.1")
    with pytest.raises(UserError, match=r"which interface leads to me.*Set GLOO_SOCKET_IFNAME.*one of eth0, ib0"):
        way_to("me")
    machine.setattr(network, "interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.5"})
    assert way_to("me") == ("10.0.0.5", "eth0")


def test_the_interface_that_somebody_chose(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("GLOO_SOCKET_IFNAME", "ib0")
    assert way_to("head") == ("10.1.0.5", "ib0")
    machine.setenv("GLOO_SOCKET_IFNAME", "eth7")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME=eth7: the interfaces with an address are lo, eth0, ib0"):
        way_to("head")


def test_a_host_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(UserError, match=r"nowhere.invalid cannot be found from here \(.*\): HEAD names the host"):
        way_to("nowhere.invalid")


def test_this_machines_interfaces() -> None:
    assert interfaces()["lo"] == "127.0.0.1"
