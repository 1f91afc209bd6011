"""Process groups, and all that works with them, end before the interpreter does.

A thread of gloo's frees the tensors of its last collective, for which it needs the interpreter, and one of Python's
that comes out of a collective needs it too. If the interpreter is ending by then, the process aborts (SIGABRT).
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref

import torch.distributed as dist

PATIENCE = 30.0  # seconds for which a process that ends waits for collectives of its own threads
SHORT = 3.5  # the same after an error, and for gloo's threads, which are done at once unless a rank has gone

working: weakref.WeakSet[threading.Thread] = weakref.WeakSet()  # daemons that are in collectives
_patience = PATIENCE


class WeakGroup:
    """An attribute that is a process group or None, and does not keep the group alive.

    Where something does, `dist.destroy_process_group` leaves gloo's threads running.

    Raises:
        RuntimeError: where the attribute is read after the group was destroyed.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, instance: object, owner: type) -> dist.ProcessGroup | None:
        reference = None if instance is None else vars(instance)[self._name]  # of the class: a dataclass's default
        if reference is None:
            return None
        group: dist.ProcessGroup | None = reference()
        if group is None:
            raise RuntimeError("the process group of these replicas has been destroyed: average before that")
        return group

    def __set__(self, instance: object, group: dist.ProcessGroup | None) -> None:
        vars(instance)[self._name] = None if group is None else weakref.ref(group)


def hurry() -> None:
    """After an error the other ranks may have gone, and the process is not to wait for them."""
    global _patience
    _patience = SHORT


@atexit.register
def _end() -> None:
    """Of a program that has not ended its process group, or left an average on its way.

    What waits for ranks that have gone is left behind.
    """
    deadline = time.monotonic() + _patience
    for thread in list(working):
        thread.join(max(0.0, deadline - time.monotonic()))
    if dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        last = threading.Thread(target=dist.destroy_process_group, daemon=True)
        last.start()
        last.join(SHORT)
