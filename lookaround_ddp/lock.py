"""One training at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lookaround_ddp.config import UserError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process gets in here, on this host or another that shares the folder.

    The operating system ends the lock with the process, however that ends; a process's children do not hold it.
    On a file system without locks there is none.

    Raises:
        UserError: another process trains here (its number and host).
    """
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"{folder} is in use by {file.read().strip() or 'another process'}: wait for it or end it, "
                    "or give another `out`"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
