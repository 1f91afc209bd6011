"""Files that are written whole or not at all, never through a symbolic link, and read only if they are files."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO


def regular(path: Path) -> Path:
    """Returns a path that may be opened to read: it leads to a file, or to a folder, which says so itself.

    Raises:
        OSError: nothing is there; or a pipe, whose reader would wait for ever, a socket, or a device, which may do
            anything when it is opened. The error has its name.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and was not opened", str(path))
    return path


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
    """Writes a new file, which is on the disk when this returns; removes it if it cannot be written.

    What has its name is removed first: a killed process left it, or it is a link that would lead elsewhere.

    Raises:
        OSError: it cannot be written; the error has its name.
    """
    try:
        path.unlink(missing_ok=True)
        with with_filename(path), path.open("xb") as file:
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


def write_picture(path: Path, figure: Any, dpi: int) -> None:
    """Writes a figure of matplotlib atomically; a name without a suffix gets `.png`.

    Raises:
        ValueError: the suffix names no format.
        OSError: the file cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=dpi)
    write_atomically(path if path.suffix else path.with_name(f"{path.name}.png"), content.getvalue())


def link(path: Path, name: Path) -> None:
    """Gives a file another name, or copies it where a file can have but one."""
    try:
        os.link(path, name)
    except OSError:
        with path.open("rb") as source:
            write(name, lambda file: shutil.copyfileobj(source, file))


def open_in_place(path: Path, mode: str) -> IO[str]:
    """Opens a text file to write where it is; raises OSError, with its name, where it is a link, or no file."""
    return open(path, mode, opener=_not_through_links)


def make_folder(path: Path) -> None:
    """Makes a folder of what a run leaves, if there is none.

    Raises:
        OSError: it cannot be made, or is a symbolic link; the error has its name.
    """
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)


def refuse_link(path: Path) -> None:
    """Raises OSError if a file or folder is a symbolic link."""
    if path.is_symlink():
        raise OSError(
            errno.ELOOP, "it is a symbolic link, and nothing is written through one: delete the link", str(path)
        )


def remove(path: Path) -> None:
    """Removes a file, a link (not what it leads to), or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Makes renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_through_links(path: str, flags: int) -> int:
    with suppress(FileNotFoundError):  # it is new, or a link that leads nowhere
        regular(Path(path))
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            refuse_link(Path(path))
        raise


def _root(error: Exception) -> Any:
    """Returns the system's error that caused this one, or this one if there is none."""
    origin: BaseException | None = error
    while origin is not None and not isinstance(origin, OSError):
        origin = origin.__context__
    return origin or error
