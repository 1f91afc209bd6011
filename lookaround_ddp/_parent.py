"""Which process started this one: read before torch is imported, which takes seconds in which that can die."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = os.getppid()


PR_SET_PDEATHSIG = 1  # of Linux's prctl


def signal_when_parent_ends(number: signal.Signals) -> None:
    """Asks Linux to send this process a signal when its parent ends, even by SIGKILL; elsewhere does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
