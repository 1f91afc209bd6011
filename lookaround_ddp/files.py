"""Files that are written whole or not at all, and errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError that lacks it (a full disk's does)."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Writes a file, which is on the disk when this returns; removes it if it cannot be written.

    Raises:
        OSError: it cannot be written; the error has its name.
    """
    try:
        with with_filename(path), path.open("wb") as file:
            try:
                fill(file)
            except RuntimeError as error:  # torch raises this one in place of the system's
                raise _root(error) from None
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file's content: it has the old or the new one, whenever the process is killed or the disk is full."""
    temporary = path.with_name(f".writing-{path.name}")
    write(temporary, lambda file: file.write(content))
    temporary.rename(path)
    sync(path.parent)


def sync(folder: Path) -> None:
    """Makes renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _root(error: Exception) -> Any:
    """Returns the system's error that caused this one, or this one if there is none."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, OSError):
        origin = origin.__context__
    return origin or error
