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


# Before, a child waits for ever in os.fork() if some thread held the lock of Python's list of threads meanwhile, as
# gloo's do whenever they free a tensor (https://github.com/python/cpython/issues/112275). With loaders that were made
# anew for each evaluation, a worker in about 700 did.
FORKS_SAFELY = sys.version_info >= (3, 11, 10) or (3, 10, 15) <= sys.version_info < (3, 11)


def context() -> BaseContext:
    """What a loader is to make its workers with: forks of this process, or of a server that has a single thread."""
    if FORKS_SAFELY:
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "lookaround_ddp.data.worker_server"])
    return server


def get_ready() -> None:
    """Starts the server, if there is to be one: it imports for seconds, and the rank can do something else."""
    if context().get_start_method() == "forkserver":
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is started keeps the mask; what comes meanwhile waits
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def prepare(worker: int) -> None:
    """Called in a worker before it begins."""
    ignore_signals()
    threading.Thread(target=_end_with_rank, daemon=True).start()


def ignore_signals() -> None:
    """Signals reach the whole process group; the trainer alone decides when its workers end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_rank() -> None:
    """However the rank ends; PyTorch's own watch is over the parent, which is the server."""
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)
