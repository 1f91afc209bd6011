"""For the launcher: this machine's address and interface on the way to another."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from lookaround_ddp.errors import UserError

SIOCGIFADDR = 0x8915  # Linux: an interface's IPv4 address


def way_to(host: str) -> tuple[str, str]:
    """Returns the address that this machine has for `host`, and the name of the interface that has it.

    A host's own name may mean 127.0.1.1 in its /etc/hosts (Debian's way), which no other host can reach: then it
    is the only interface that leaves the machine. GLOO_SOCKET_IFNAME, if set, names it in any case.

    Raises:
        UserError: `host` does not resolve; there is no such interface, or it has no address; or several fit.
    """
    there = interfaces()
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    if chosen is not None:
        if chosen not in there:
            raise UserError(f"GLOO_SOCKET_IFNAME={chosen}: the interfaces with an address are {', '.join(there)}")
        if there[chosen].startswith("127."):
            others = [name for name, address in there.items() if not address.startswith("127.")]
            raise UserError(f"GLOO_SOCKET_IFNAME={chosen} leads to no other host: set it to {' or '.join(others)}")
        return there[chosen], chosen
    try:
        (*_, target), *_ = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"{host} cannot be found from here ({error.strerror}): HEAD names the host of node 0") from None
    names = [name for name, address in there.items() if address == own]
    if own.startswith("127.") or not names:
        names = [name for name, address in there.items() if not address.startswith("127.")]
    if len(names) != 1:
        raise UserError(
            f"which interface leads to {host}? Set GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME for GPUs, to one of "
            f"{', '.join(names or there)}"
        )
    return there[names[0]], names[0]


def interfaces() -> dict[str, str]:
    """Returns name -> IPv4 address of the interfaces that have one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            found[name] = socket.inet_ntoa(answer[20:24])
    return found
