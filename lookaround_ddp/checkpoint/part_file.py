"""One file of a checkpoint: written with its SHA-256, and read without running what may be in it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, Protocol, cast

import torch

from lookaround_ddp.errors import UserError, shortened
from lookaround_ddp.files import write


class Part(Protocol):
    """What a checkpoint keeps in a file of its own: a replica, or an average along time."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Hashed:
    """A file that is hashed as it is written, so that nobody has to read it back."""

    def __init__(self, file: BinaryIO, given_up: Callable[[], bool]) -> None:
        self.file, self.given_up, self.digest = file, given_up, hashlib.sha256()

    def write(self, data: bytes) -> int:
        if self.given_up():
            raise InterruptedError(errno.EINTR, "nobody waits for it any more")
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_part(path: Path, state: dict[str, Any], given_up: Callable[[], bool] = lambda: False) -> str:
    """Writes a file of tensors and plain values, which is on the disk then; returns its SHA-256.

    Args:
        given_up: returns whether to end before all is written.

    Raises:
        OSError: it cannot be written, and is not there; the error has its name.
    """
    digest = ""

    def fill(file: BinaryIO) -> None:
        nonlocal digest
        hashed = _Hashed(file, given_up)
        torch.save(state, cast(IO[bytes], hashed))
        digest = hashed.digest.hexdigest()

    write(path, fill)
    return digest


def load_part(path: Path) -> Any:
    """Loads a file of tensors and plain values; anything else might run code when it is unpickled.

    Raises:
        UserError: the file holds something else, or nothing that torch.save writes.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise UserError(
            f"{path} is refused, and nothing in it was run: its checksum is right, but this package writes tensors "
            f"and plain values alone ({_short_message(error)}); delete the checkpoint if you do not know who made it"
        ) from None


def restore_part(path: Path, part: Part) -> None:
    """Loads a file into its part; raises UserError if it does not fit."""
    state = load_part(path)
    try:
        part.load_state_dict(state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} does not fit this run ({type(error).__name__}: {_short_message(error)}): was another version of "
            "this package its maker? Train in another `out`"
        ) from None


def _short_message(error: Exception) -> str:
    """Returns the error's message in one short line."""
    return shortened(" ".join(str(error).split()), 150)
