"""Which analysis is which function; asking for one imports that one alone, since some of them train."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

RUNS = ("diversity", "plane", "sharpness", "trajectory")  # the analyses of runs; others are of numbers alone
OF_MODELS = ("plane", "sharpness")  # of these, those of networks: a run's checkpoint stands for its mean model there


def function_of(analysis: str) -> Callable[..., None]:
    """Returns what does an analysis: of its options, or (for one of RUNS) of options, runs, their configs and World."""
    folder = "analysis" if analysis in RUNS else "analysis.theory"
    module = import_module(f"lookaround_ddp.{folder}.{analysis}")
    return getattr(module, f"analyze_{analysis}")
