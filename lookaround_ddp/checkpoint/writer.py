"""The files of a checkpoint, written by a thread while the training goes on: from copies, which do not change."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookaround_ddp.checkpoint.part_file import Part, write_part


class Writer:
    """Copies the parts that a rank is to write, and writes them in a thread.

    Args:
        folder: which is there.
        parts: file name -> what is written into it, as it is now.
        device: of the parts. The host does not wait for a GPU's copies; the thread does.
    """

    def __init__(self, folder: Path, parts: Mapping[str, Part], device: torch.device) -> None:
        self._folder = folder
        self._states = {name: snapshot(part.state_dict()) for name, part in parts.items()}
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(device))
        self.seconds = 0.0  # that the thread took, once it is done
        self._digests: dict[str, str] = {}
        self._error: Exception | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the files are on the disk, or cannot be written."""
        return not self._thread.is_alive()

    def wait(self) -> dict[str, str]:
        """Waits for the thread; returns the SHA-256 of each file.

        Raises:
            OSError: a file cannot be written.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digests

    def give_up(self) -> None:
        """Ends the thread as soon as it can be ended: an interpreter that ends must not have it any more."""
        self._given_up.set()
        self._thread.join()

    def _run(self) -> None:
        """Writes the files; keeps what is raised for `wait`. Each copy is let go when its file is there."""
        began = time.perf_counter()
        try:
            if self._copied is not None:
                self._copied.synchronize()
            while self._states:
                name = next(iter(self._states))
                self._digests[name] = write_part(self._folder / name, self._states.pop(name), self._given_up.is_set)
        except Exception as caught:  # of any kind: the thread that waits raises it
            self._error = caught
        finally:
            self._states.clear()
            self.seconds = time.perf_counter() - began


def snapshot(value: Any, seen: dict[Any, Tensor] | None = None) -> Any:
    """Returns a copy of a state, of dicts, lists, tuples, tensors and plain values; tied tensors stay one.

    A GPU's tensors are copied into pinned memory of the host by its current stream, for which nobody waits here.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in seen:
            seen[key] = _copied_tensor(value.detach())
        return seen[key]
    if isinstance(value, dict):
        result = copy.copy(value)  # with what PyTorch adds to a module's
        result.update((key, snapshot(each, seen)) for key, each in value.items())
        return result
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(each, seen) for each in value)
    return value


def _copied_tensor(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
