"""Which analysis is which function."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lookaround_ddp.analysis import diversity, plane, sharpness, trajectory
from lookaround_ddp.analysis.theory import convergence, quadratic
from lookaround_ddp.config import Config
from lookaround_ddp.distributed import World

NUMBERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quadratic": quadratic.analyze,
    "convergence": convergence.analyze,
}


RUNS: dict[str, Callable[[argparse.Namespace, Sequence[Path], Sequence[Config], World], None]] = {
    "diversity": diversity.analyze,
    "plane": plane.analyze,
    "sharpness": sharpness.analyze,
    "trajectory": trajectory.analyze,
}
