"""Lookaround: k steps around, 1 step average, on any number of GPUs (arXiv 2306.07684)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lookaround_ddp._parent import PARENT  # noqa: F401  # it must be read before torch is imported

if TYPE_CHECKING:
    from lookaround_ddp.averaging import Lookaround, Nodes, Outer

__all__ = ["Lookaround", "Nodes", "Outer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what the package offers when it is asked for: with torch, which help need not wait for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lookaround_ddp import averaging

    return getattr(averaging, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
