"""Lookaround: k steps around, 1 step average, on any number of GPUs (arXiv 2306.07684)."""

from lookaround_ddp._parent import PARENT  # noqa: F401  # it must be read before torch is imported

from lookaround_ddp.averaging import Lookaround, Nodes, Outer  # isort: skip

__all__ = ["Lookaround", "Nodes", "Outer"]
__version__ = "0.1.0"
