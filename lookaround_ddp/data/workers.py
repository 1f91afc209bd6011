"""The processes in which a rank's loaders compute batches: what they are forked from, and what ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


# In older versions of Python a child waits for ever in os.fork() if another thread holds the lock of Python's list of
# threads at that moment, as gloo's threads do whenever they free a tensor
# (https://github.com/python/cpython/issues/112275). About one worker in 700 hung like this, with loaders that were made
# anew for each evaluation.
FORKS_SAFELY = sys.version_info >= (3, 11, 10) or (3, 10, 15) <= sys.version_info < (3, 11)


def context() -> BaseContext:
    """Returns the context with which a loader makes its workers.

    They are forks of this process where that is safe, otherwise of a server that has a single thread.
    """
    if FORKS_SAFELY:
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "lookaround_ddp.data.worker_server"])
    return server


def get_ready() -> None:
    """Starts the server, if workers need one: its imports take seconds, in which the rank can do something else."""
    if context().get_start_method() == "forkserver":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the server inherits this; the rank gets them later
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def prepare(worker: int) -> None:
    """Prepares a worker, before it begins, to ignore signals and to end when its rank does."""
    ignore_signals()
    threading.Thread(target=_end_with_rank, daemon=True).start()


def ignore_signals() -> None:
    """Ignores signals, which reach the whole process group: the trainer alone decides when its workers end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_rank() -> None:
    """Waits until the rank ends, however it does, and ends this worker.

    PyTorch watches only the worker's parent, which may be the server.
    """
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)
