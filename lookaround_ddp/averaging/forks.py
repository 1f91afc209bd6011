"""A forked child has memory of its own, as it has without `Lookaround`, where ranks share that of the replicas.

Otherwise what it writes into its copy of a model would be in its parent's weights, and it would see these change.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import Tensor

_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_ANONYMOUS", 0) | 0x10  # and MAP_FIXED: in place of what is there

_map_memory = ctypes.CDLL(None).mmap
_map_memory.restype = ctypes.c_void_p
_map_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]

_tensors: WeakKeyDictionary[mmap.mmap, list[tuple[int, int]]] = WeakKeyDictionary()  # addresses and bytes to be kept
_kept: list[tuple[int, int, list[tuple[int, bytes]]]] = []  # while a process forks: memory, its size, what stands where
_forking = threading.Lock()  # one thread at a time


def keep_in_children(memory: mmap.mmap, tensors: Iterable[Tensor]) -> None:
    """Gives a child the tensors' values of when it was forked, in memory of its own, and zeros in the other places.

    Args:
        memory: what ranks share.
        tensors: contiguous, in this memory.
    """
    _tensors[memory] = [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def _before() -> None:
    """Copies the values before the fork: after it the parent may change them before the child has read them."""
    _forking.acquire()
    for memory, tensors in list(_tensors.items()):
        values = [(address, ctypes.string_at(address, size)) for address, size in tensors]
        _kept.append((ctypes.addressof(ctypes.c_char.from_buffer(memory)), len(memory), values))


def _in_child() -> None:
    """Puts private memory in the place of what is shared. No operation of torch: its threads are not in the child."""
    for start, size, values in _kept:
        if _map_memory(start, size, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE, -1, 0) != start:
            os.write(2, b"lookaround_ddp: no memory for a forked child, which would write into its parent's weights\n")
            os._exit(1)
        for address, value in values:
            ctypes.memmove(address, value, len(value))
    _after()


def _after() -> None:
    _kept.clear()
    _forking.release()


os.register_at_fork(before=_before, after_in_child=_in_child, after_in_parent=_after)
