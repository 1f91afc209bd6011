"""Process groups of gloo, and the threads that exchange, end before the interpreter does.

A thread of gloo's frees the tensors of its last collective, for which it needs the interpreter, and one of Python's
that comes out of a collective needs it too. If the interpreter is ending by then, the process aborts (SIGABRT).
What waits for ranks that have gone is left behind, and so is a group that DDP or an uncaught exception still holds.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from contextlib import suppress

import torch.distributed as dist

PATIENCE = 30.0  # seconds for which a process that ends waits for collectives of its own threads


SHORT = 3.5  # the same after an error, and for gloo's threads, which are done at once unless a rank has gone


exchanging: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # daemons


_patience = PATIENCE


def hurry() -> None:
    """After an error the other ranks may have gone, and the process is not to wait for them."""
    global _patience
    _patience = SHORT


@atexit.register
def _end() -> None:
    """Waits for the threads that exchange, and ends gloo's, if the program has not."""
    failed = hasattr(sys, "last_value")  # an exception that nobody caught
    deadline = time.monotonic() + (SHORT if failed else _patience)
    for thread in list(exchanging):
        thread.join(max(0.0, deadline - time.monotonic()))
    if dist.is_available() and dist.is_initialized() and _is_gloo(str(dist.get_backend_config())):
        last = threading.Thread(target=dist.destroy_process_group, daemon=True)
        with suppress(RuntimeError):  # Python 3.12 starts no thread here; then gloo's run on
            last.start()
            last.join(SHORT)


def _is_gloo(backends: str) -> bool:
    """Such as cpu:gloo, and not NCCL beside it, which is the program's own to end."""
    return "gloo" in backends and "nccl" not in backends


os.register_at_fork(after_in_child=lambda: atexit.unregister(_end))  # where gloo has no threads to wait for
