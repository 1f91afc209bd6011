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

if dist.is_available():
    # Its functions keep, as a default, the group that there is when it is imported: no thread of gloo's would end with
    # that one. The first optimizer of a program imports it, if nobody has before.
    import torch.distributed.nn.functional  # noqa: F401

EXIT_SECONDS = 30.0  # for which a process that ends waits for collectives of its own threads

# The same after an error, and for gloo's threads, which are done at once unless a rank has gone
LOST_RANKS_SECONDS = 3.5

exchange_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # daemons, so Python does not wait for them

_exit_seconds = EXIT_SECONDS


def expect_lost_ranks() -> None:
    """Shortens the wait at exit: after an error the other ranks may have gone."""
    global _exit_seconds
    _exit_seconds = LOST_RANKS_SECONDS


@atexit.register
def _end_threads() -> None:
    """Waits for the threads that exchange, and ends gloo's, if the program has not."""
    failed = hasattr(sys, "last_value")  # an exception that nobody caught
    deadline = time.monotonic() + (LOST_RANKS_SECONDS if failed else _exit_seconds)
    for thread in list(exchange_threads):
        thread.join(max(0.0, deadline - time.monotonic()))
    if dist.is_available() and dist.is_initialized() and _is_gloo(str(dist.get_backend_config())):
        last = threading.Thread(target=dist.destroy_process_group, daemon=True)
        with suppress(RuntimeError):  # Python 3.12 starts no thread at exit; then gloo's threads keep running
            last.start()
            last.join(LOST_RANKS_SECONDS)


def _is_gloo(backends: str) -> bool:
    """Returns whether the backends are such as cpu:gloo, without NCCL, which the program itself must end."""
    return "gloo" in backends and "nccl" not in backends


os.register_at_fork(after_in_child=lambda: atexit.unregister(_end_threads))  # gloo has no threads in a forked child
