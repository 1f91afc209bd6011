"""The processes in which a rank's loaders compute batches: what they are forked from, and what ends them."""

from __future__ import annotations

import errno
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any

from lookaround_ddp.errors import BatchError, UserError, explained, name_of_signal, told

IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

ROOM = "loader workers pass batches on in it: make it larger (docker run --shm-size=8g), or lower data.workers"
DEATHS = {  # what has mostly happened if a worker was killed by this signal, and the mend
    "SIGKILL": "most likely the machine ran out of memory: lower data.workers, or take more memory",
    "SIGBUS": f"most likely /dev/shm is full: {ROOM}",
}


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
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)  # the server inherits this; the rank gets them later
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)


def prepare_worker(worker: int) -> None:
    """Prepares a worker, before it begins, to ignore signals and to end when its rank does."""
    ignore_signals()
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]  # which exists to be replaced
    threading.Thread(target=_end_with_rank, daemon=True).start()


def ignore_signals() -> None:
    """Ignores signals, which reach the whole process group: the trainer alone decides when its workers end."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_rank() -> None:
    """Waits until the rank ends, however it does, and ends this worker.

    PyTorch watches only the worker's parent, which may be the server.
    """
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def _send_error(queue: Queue[Any], error: Exception, message: tuple[int, Any]) -> None:
    """Sends an error instead of a batch that cannot be sent, which the rank would wait for in vain."""
    number, _ = message
    queue.put((number, explanation(error)))


@contextmanager
def ended() -> Iterator[list[BaseProcess]]:
    """Ends the processes that are put into the list: when the block ends, or the interpreter does before.

    Python would send them SIGTERM, which they ignore, and wait for them.
    """
    processes: list[BaseProcess] = []
    end = Finalize(None, _kill, args=(processes,), exitpriority=10)  # before Python waits
    try:
        yield processes
    finally:
        end()


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


@contextmanager
def started(processes: list[BaseProcess]) -> Iterator[None]:
    """Adds the workers to the list that a loader starts in the block, even if it fails to start all of them.

    It also leaves SIGCHLD as it was: the loader's handler would raise an error wherever this process is when a worker
    dies, be it in the midst of a collective or of a file.
    """
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        processes += [each for each in multiprocessing.active_children() if each not in others]
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def failure(error: Exception, processes: Sequence[BaseProcess]) -> Exception:
    """Returns what to raise for a loader's error: which of its workers has died, and of what, or what else it was."""
    multiprocessing.connection.wait([each.sentinel for each in processes], timeout=1)  # it may be dying
    codes = [each.exitcode for each in processes if each.exitcode is not None]
    if not codes:
        return explanation(error)
    if codes[0] >= 0:
        return BatchError(f"a loader worker ended, with exit status {codes[0]}")
    name = name_of_signal(-codes[0])
    mend = DEATHS.get(name, "set data.workers=0 to see whether this process dies, too")
    return BatchError(f"a loader worker was killed by {name}: {mend}")


def explanation(error: Exception) -> Exception:
    """Returns what to raise for an error of passing batches between processes."""
    if "shared memory" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return UserError(f"/dev/shm is full: {ROOM}")
    if isinstance(error, pickle.PicklingError) or "pickle" in str(error):
        return UserError(
            f"loader workers get a copy of the data and of its augmentations, which has none ({told(error)}): let your "
            "own be picklable, or set data.workers=0"
        )
    return BatchError(f"loader workers: {explained(error) if isinstance(error, OSError) else told(error)}")
