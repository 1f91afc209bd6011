"""Overlaps an average step with the next forward pass, which waits for each tensor when it is first used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from lookaround_ddp.averaging import shutdown
from lookaround_ddp.averaging.replica_group import ReplicaGroup

# Bytes of one replica under way together: few, since the first bucket must be there before the forward pass begins
BUCKET_BYTES = 8 * 2**20


OnTensorDone = Callable[[int], None]  # called with a tensor's index once it has its new value


Exchange = Callable[["OnTensorDone | None"], "Tensor | None"]


PROPERTIES = frozenset({"dtype", "device", "ndim", "shape", "requires_grad", "is_leaf", "layout", "grad", "names"})


class UnderWay(Protocol):
    """An exchange that was begun."""

    def wait_for(self, tensors: Iterable[int]) -> None:
        """Waits until these tensors have their new values, on behalf of what this thread does next."""

    def wait(self) -> Tensor | None:
        """Waits until all tensors have theirs; returns what the exchange returned."""


class InThread:
    """On a CPU: an exchange in a thread of its own, while this one computes."""

    def __init__(self, exchange: Exchange, tensors: int) -> None:
        self._changed = threading.Condition()
        self._missing = set(range(tensors))
        self._result: Tensor | None = None
        self._error: Exception | None = None
        self._ended = False
        self._exchange = exchange
        thread = threading.Thread(target=self._run, daemon=True, name="average step")
        thread.start()
        shutdown.exchange_threads.add(thread)

    def wait_for(self, tensors: Iterable[int]) -> None:
        wanted = set(tensors)
        with self._changed:
            self._changed.wait_for(lambda: self._missing.isdisjoint(wanted))
        if self._error is not None:
            raise self._error

    def wait(self) -> Tensor | None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended)
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        """Runs the exchange, and keeps what it returns or raises."""
        error = None
        try:
            with torch.no_grad():
                self._result = self._exchange(self._arrived)
        except Exception as caught:  # of any kind: the thread that waits raises it
            error = caught
        with self._changed:
            self._error, self._ended = error, True
            self._missing.clear()
            self._changed.notify_all()

    def _arrived(self, tensor: int) -> None:
        with self._changed:
            self._missing.discard(tensor)
            self._changed.notify_all()


class OnStream:
    """On a GPU: an exchange on a stream of its own; the host does not wait for the device, unless the exchange does."""

    def __init__(self, exchange: Exchange, tensors: int, device: torch.device) -> None:
        self._stream = _stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._events: dict[int, torch.cuda.Event] = {}
        self._device = device
        with torch.cuda.stream(self._stream), torch.no_grad():
            self._result = exchange(self._arrived)

    def wait_for(self, tensors: Iterable[int]) -> None:
        for tensor in tensors:
            if tensor in self._events:  # an empty one needs none
                torch.cuda.current_stream(self._device).wait_event(self._events[tensor])

    def wait(self) -> Tensor | None:
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        if self._result is not None:
            self._result.record_stream(current)
        return self._result

    def _arrived(self, tensor: int) -> None:
        self._events[tensor] = self._stream.record_event()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Returns the device's one stream for exchanges: the allocator reuses memory only on the stream that freed it."""
    return torch.cuda.Stream(device)


class Completed:
    """An exchange that ran in the constructor; there is nothing left to wait for."""

    def __init__(self, exchange: Exchange) -> None:
        self._result = exchange(None)

    def wait_for(self, tensors: Iterable[int]) -> None:
        """Returns at once: they have their new values."""

    def wait(self) -> Tensor | None:
        return self._result


def begin(exchange: Exchange, tensors: int, device: torch.device, overlap: bool) -> UnderWay:
    """Begins an exchange of so many tensors; without `overlap` it has ended when this returns."""
    if not overlap:
        return Completed(exchange)
    return OnStream(exchange, tensors, device) if device.type == "cuda" else InThread(exchange, tensors)


class ForwardOverlap:
    """Makes the models' next forward pass wait for each tensor when it is first used.

    Args:
        under_way: the exchange.
        models: those that this rank hosts.
        rows: the tensors of each, as the exchange numbers them.

    Attributes:
        finished: whether the forward pass has ended, or `end` was called.
    """

    def __init__(self, under_way: UnderWay, models: Sequence[nn.Module], rows: Sequence[Sequence[Tensor]]) -> None:
        self.under_way = under_way
        self.finished = False
        numbers = {id(tensor): number for row in rows for number, tensor in enumerate(row)}
        self._handles: list[RemovableHandle] = []
        for model in models:
            waiting = _WaitOnFirstUse(under_way, numbers)
            self._handles += [
                model.register_forward_pre_hook(waiting.enter, prepend=True),
                model.register_forward_hook(waiting.leave, always_call=True),
                model.register_forward_hook(partial(self._end, waiting)),
                model.register_state_dict_pre_hook(lambda *_: self.under_way.wait()),
            ]

    def end(self) -> Tensor | None:
        """Removes the hooks and waits for the exchange; returns what it returned."""
        self.finished = True
        for handle in self._handles:
            handle.remove()
        return self.under_way.wait()

    def _end(self, waiting: _WaitOnFirstUse, *_: Any) -> None:
        """Ends the overlap after the forward pass: the backward and the optimizer's step use everything."""
        self.end()
        if waiting.missed_all():
            raise RuntimeError(
                "the forward pass used no weight where Lookaround could see it, and perhaps before it was there, as "
                "nn.DataParallel and copies of weights do: call wait() first, or create Lookaround with hide=False"
            )


class _WaitOnFirstUse(TorchFunctionMode):
    """While active, makes every torch function wait for those of its arguments that have not been averaged yet."""

    def __init__(self, under_way: UnderWay, numbers: Mapping[int, int]) -> None:
        super().__init__()
        self.under_way, self.numbers = under_way, dict(numbers)
        self.entered = False
        self._all = len(numbers)

    def missed_all(self) -> bool:
        """Returns whether there are tensors, and none of them has been used."""
        return len(self.numbers) == self._all > 0

    def enter(self, *_: Any) -> None:
        """Activates the mode, as a forward pre-hook."""
        self.entered = True
        self.__enter__()

    def leave(self, *_: Any) -> None:
        """Deactivates the mode, as a forward hook."""
        if self.entered:  # false where another pre-hook failed before `enter`
            self.entered = False
            self.__exit__(None, None, None)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_property(function):
            for value in (*args, *kwargs.values()):
                self._use(value)
        return function(*args, **kwargs)

    def _use(self, value: Any) -> None:
        """Waits for the tensors in an argument, the first time that they are used."""
        if isinstance(value, Tensor):
            number = self.numbers.pop(id(value), None)
            if number is not None:
                self.under_way.wait_for([number])
        elif isinstance(value, (tuple, list)):
            for each in value:
                self._use(each)


def _is_property(function: Any) -> bool:
    """Returns whether a function reads a tensor's property, and none of its elements."""
    return getattr(getattr(function, "__self__", None), "__name__", "") in PROPERTIES


def can_overlap(members: ReplicaGroup, device: torch.device) -> bool:
    """Returns whether another thread or stream can exchange tensors on this device while this one computes."""
    return members.ranks > 1 and members.wire(device) == device


def overlap_obstacle(models: Iterable[nn.Module]) -> str | None:
    """Names what hides weight accesses from `__torch_function__` (torch.compile, TorchScript, CUDA graphs), or None."""
    for module in chain(*(model.modules() for model in models)):
        if module._compiled_call_impl is not None:
            return "torch.compile"
        if isinstance(module, torch.jit.ScriptModule):
            return "TorchScript"
        forward = getattr(module, "forward", None)
        compiled = hasattr(forward, "_torchdynamo_orig_callable")  # as torch.compile(module) does, too
        if compiled and not getattr(forward, "_torchdynamo_disable", False):
            return "torch.compile"
        if getattr(forward, "__qualname__", "").startswith("make_graphed_callables"):
            return "CUDA graphs"
    return None


def overlap_members(members: ReplicaGroup, group: dist.ProcessGroup | None) -> ReplicaGroup:
    """Returns the same replicas with small buckets and a process group of their own, to overlap other collectives.

    Args:
        group: a second group of the same ranks; if None, one is made, which is collective over all ranks.

    Raises:
        ValueError: none is given, and none can be made, since other ranks would have to take part in that.
    """
    if members.group is not None and group is None:
        if members.ranks != dist.get_world_size():
            raise ValueError(
                "hide and delay need a second group of the same ranks, made by dist.new_group: give `beside`"
            )
        device = torch.device("cuda" if "nccl" in dist.get_backend(members.group) else "cpu")
        made = dist.new_group(timeout=members.group._get_backend(device).options._timeout)
        assert isinstance(made, dist.ProcessGroup)  # all ranks are in it
        group = made
    return replace(members, group=group, bucket_bytes=BUCKET_BYTES)
