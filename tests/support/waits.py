"""What a host would wait for, if its tensors were on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = (
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
)
METHODS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


@contextmanager
def waits() -> Iterator[list[str]]:
    """Collects the names of what is called inside and gives the host a value; the copies of `to` are not seen."""
    found: list[str] = []
    with _Methods(found), _Operations(found):
        yield found


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in OPERATIONS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Of which some read a tensor's memory without an operation."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in METHODS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))
