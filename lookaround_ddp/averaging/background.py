"""An exchange that goes on while the replicas train: in a thread on a CPU, on a stream of its own on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging import shutdown
from lookaround_ddp.averaging.replica_group import ReplicaGroup

Exchange = Callable[[], "Tensor | None"]


class UnderWay(Protocol):
    """An exchange that was begun."""

    def wait(self) -> Tensor | None:
        """Waits until it has ended, on behalf of what this thread does next; returns what the exchange returned."""


class InThread:
    """On a CPU: an exchange in a thread of its own, while this one computes."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._result: Tensor | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="average step")
        self._thread.start()
        shutdown.exchange_threads.add(self._thread)

    def wait(self) -> Tensor | None:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        """Runs the exchange, and keeps what it returns or raises."""
        try:
            with torch.no_grad():
                self._result = self._exchange()
        except Exception as caught:  # of any kind: the thread that waits raises it
            self._error = caught


class OnStream:
    """On a GPU: an exchange on a stream of its own; the host does not wait for the device."""

    def __init__(self, exchange: Exchange, device: torch.device) -> None:
        self._stream, self._device = _stream(device), device
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream), torch.no_grad():
            self._result = exchange()

    def wait(self) -> Tensor | None:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        if self._result is not None:
            self._result.record_stream(current)
        return self._result


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the device's one stream for exchanges: the allocator reuses memory only on the stream that freed it."""
    return torch.cuda.Stream(device)


class Completed:
    """An exchange that ran in the constructor; there is nothing left to wait for."""

    def __init__(self, exchange: Exchange) -> None:
        self._result = exchange()

    def wait(self) -> Tensor | None:
        return self._result


def begin_exchange(exchange: Exchange, replica_group: ReplicaGroup, device: torch.device) -> UnderWay:
    """Begins an exchange, in a thread or on a stream where it can overlap what follows; otherwise it has ended."""
    if replica_group.ranks == 1 or replica_group.wire(device) != device:
        return Completed(exchange)
    return OnStream(exchange, device) if device.type == "cuda" else InThread(exchange)


def background_replica_group(replica_group: ReplicaGroup, group: dist.ProcessGroup | None) -> ReplicaGroup:
    """Returns the same replicas with a process group of their own, to overlap other collectives.

    Args:
        group: a second group of the same ranks; if None, one is made, which is collective over all ranks.

    Raises:
        ValueError: none is given, and none can be made, since other ranks would have to take part in that.
    """
    if replica_group.group is not None and group is None:
        if replica_group.ranks != dist.get_world_size():
            raise ValueError("delay needs a second group of the same ranks, made by dist.new_group: give `beside`")
        group = new_group(replica_group.group)
    return replace(replica_group, group=group)


def new_group(like: dist.ProcessGroup, ranks: Sequence[int] | None = None) -> dist.ProcessGroup | None:
    """Makes a group with the timeout of another one; collective over all processes. None on those that are not in it.

    Args:
        ranks: its members; None: all.
    """
    device = torch.device("cuda" if "nccl" in dist.get_backend(like) else "cpu")
    made = dist.new_group(ranks, timeout=like._get_backend(device).options._timeout)
    return made if isinstance(made, dist.ProcessGroup) else None
