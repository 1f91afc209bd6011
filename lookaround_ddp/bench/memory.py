"""The memory that a call needs beyond what is resident before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # written to clear_refs: VmHWM becomes VmRSS
TOLERANCE = 2**21  # the kernel counts pages per core and sums up lazily, so its figures are off by some 0.5 MB


def extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak minus resident bytes of this process, or of its GPU, during the call; None if it cannot be told.

    The call is made in any case: it may be a collective, and other ranks wait for it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    resident = _reset_peak()
    call()
    return None if resident is None else max(0, _status("VmHWM") - resident)


def _reset_peak() -> int | None:
    """Resident bytes, from which the peak now counts; None where the system does not do this (not Linux, musl).

    Memory that was freed but is still in malloc's hands would hide what the call needs, so it goes back first.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR_REFS.write_text(RESET_PEAK)
        resident = _status("VmRSS")
        return resident if abs(_status("VmHWM") - resident) < TOLERANCE else None
    except (OSError, AttributeError, KeyError):
        return None


def _status(key: str) -> int:
    """A field of /proc/self/status, which is in kB, in bytes."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(fields[key].split()[0]) * 1024
