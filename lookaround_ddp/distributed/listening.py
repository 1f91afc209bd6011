"""The port on which rank 0 keeps the job's store: open on one address, where torch would open it on all."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import IPv4Address

import torch.distributed as dist


def listen(rank: int) -> dist.TCPStore | None:
    """Opens the store's port on MASTER_ADDR alone; `init_process_group` finds it open, and takes it as it is.

    Only for rank 0, and where that is an address of this machine: a name may mean another one here than elsewhere.
    Returns what must be kept until the process group is there; None where torchrun has the store, or torch opens it.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    if not (_is_address(host) and port.isdecimal()):
        return None
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:  # it is the address of a router, which passes the connections on
            return None
        raise RuntimeError(f"{errno.errorcode.get(error.errno or 0)}: {error}") from error  # as torch would
    return dist.TCPStore(
        host, int(port), is_master=True, wait_for_workers=False, multi_tenant=True, master_listen_fd=listener.detach()
    )


def _is_address(host: str) -> bool:
    try:
        return not IPv4Address(host).is_unspecified
    except ValueError:
        return False
