"""Which analysis is which function."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from lookaround_ddp.analysis import convergence, quadratic

NUMBERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "quadratic": quadratic.analyze,
    "convergence": convergence.analyze,
}
