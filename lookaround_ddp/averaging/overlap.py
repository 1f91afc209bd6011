"""An average step that goes on behind the next forward pass, in which each tensor is waited for when it is used."""

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

from lookaround_ddp.averaging import shutdown as groups
from lookaround_ddp.averaging.replica_group import Members

# Of one replica, under way together: small, since the first must be there before the forward pass can begin
BUCKET_BYTES = 8 * 2**20


Done = Callable[[int], None]  # is called with the number of each tensor that is done


Exchange = Callable[["Done | None"], "Tensor | None"]


PROPERTIES = frozenset({"dtype", "device", "ndim", "shape", "requires_grad", "is_leaf", "layout", "grad", "names"})


class UnderWay(Protocol):
    """An exchange that was begun."""

    def wait_for(self, tensors: Iterable[int]) -> None:
        """Until these have arrived, for the work that this thread does afterwards."""

    def wait(self) -> Tensor | None:
        """Until all have; what the exchange returned."""


class InThread:
    """On a CPU: a thread of its own exchanges, while this one computes."""

    def __init__(self, exchange: Exchange, tensors: int) -> None:
        self._changed = threading.Condition()
        self._missing = set(range(tensors))
        self._result: Tensor | None = None
        self._error: Exception | None = None
        self._ended = False
        self._exchange = exchange
        thread = threading.Thread(target=self._run, daemon=True, name="average step")
        thread.start()
        groups.exchanging.add(thread)

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
        error = None
        try:
            with torch.no_grad():
                self._result = self._exchange(self._arrived)
        except Exception as caught:  # whatever it is, the thread that waits raises it
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
    """On a GPU: a stream of its own exchanges; nothing here waits for the device, unless the exchange does."""

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
    """The same each time: memory that was used on a stream is used again there alone."""
    return torch.cuda.Stream(device)


class Over:
    """Where nothing can go on aside: it is done at once."""

    def __init__(self, exchange: Exchange) -> None:
        self._result = exchange(None)

    def wait_for(self, tensors: Iterable[int]) -> None:
        """They are there."""

    def wait(self) -> Tensor | None:
        return self._result


def begin(exchange: Exchange, tensors: int, device: torch.device, aside: bool) -> UnderWay:
    if not aside:
        return Over(exchange)
    return OnStream(exchange, tensors, device) if device.type == "cuda" else InThread(exchange, tensors)


class Behind:
    """Makes the models' next forward pass wait for what it uses, when it uses it.

    Args:
        under_way: the exchange.
        models: those that this rank hosts.
        rows: the tensors of each, as the exchange numbers them.
    """

    def __init__(self, under_way: UnderWay, models: Sequence[nn.Module], rows: Sequence[Sequence[Tensor]]) -> None:
        self.under_way = under_way
        self.over = False
        numbers = {id(tensor): number for row in rows for number, tensor in enumerate(row)}
        self._handles: list[RemovableHandle] = []
        for model in models:
            first_use = _FirstUse(under_way, numbers)
            self._handles += [
                model.register_forward_pre_hook(first_use.enter, prepend=True),
                model.register_forward_hook(first_use.leave, always_call=True),
                model.register_forward_hook(partial(self._end, first_use)),
                model.register_state_dict_pre_hook(lambda *_: self.under_way.wait()),
            ]

    def end(self) -> Tensor | None:
        """Waits for everything, and takes the hooks away."""
        self.over = True
        for handle in self._handles:
            handle.remove()
        return self.under_way.wait()

    def _end(self, first_use: _FirstUse, *_: Any) -> None:
        """After the forward pass the backward and the optimizer's step use everything."""
        self.end()
        if first_use.missed_all():
            raise RuntimeError(
                "the forward pass used no weight where Lookaround could see it, and perhaps before it was there, as "
                "nn.DataParallel and copies of weights do: call wait() first, or create Lookaround with hide=False"
            )


class _FirstUse(TorchFunctionMode):
    """Inside, a function of torch waits for those of its arguments that are still on their way."""

    def __init__(self, under_way: UnderWay, numbers: Mapping[int, int]) -> None:
        super().__init__()
        self.under_way, self.numbers = under_way, dict(numbers)
        self.entered = False
        self._all = len(numbers)

    def missed_all(self) -> bool:
        """Whether there are tensors, of which none has been used."""
        return len(self.numbers) == self._all > 0

    def enter(self, *_: Any) -> None:
        self.entered = True
        self.__enter__()

    def leave(self, *_: Any) -> None:
        if self.entered:  # not where another hook failed before
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
        if isinstance(value, Tensor):
            number = self.numbers.pop(id(value), None)
            if number is not None:
                self.under_way.wait_for([number])
        elif isinstance(value, (tuple, list)):
            for each in value:
                self._use(each)


def _is_property(function: Any) -> bool:
    """Of a tensor, and none of its elements."""
    return getattr(getattr(function, "__self__", None), "__name__", "") in PROPERTIES


def can_hide(members: Members, device: torch.device) -> bool:
    """Whether another thread or stream can exchange."""
    return members.ranks > 1 and members.wire(device) == device


def unseen(models: Iterable[nn.Module]) -> str | None:
    """Why a forward pass would use weights in a way that Python does not see; None if it would not."""
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


def aside(members: Members, group: dist.ProcessGroup | None) -> Members:
    """The same replicas, for what goes on beside other collectives: in small buckets, over a group of its own.

    Args:
        group: of the same ranks; made here if these are all, which is collective.

    Raises:
        ValueError: there is none, and it cannot be made, since other ranks would have to take part in that.
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
