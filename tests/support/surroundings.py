"""What is around a job: a small disk that can be filled, and a network that can be cut. Both need root, on Linux."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SPACE, LOOPBACK = "lookaround-faults", ("link", "set", "lo")


def within(state: str) -> None:
    subprocess.run(["ip", "-n", SPACE, *LOOPBACK, state], check=True)


def fill(disk: Path) -> Path:
    """Leaves no room; returns the file that takes it."""
    path = disk / "other"
    with path.open("wb", buffering=0) as file, suppress(OSError):  # which says that no room is left
        while True:
            file.write(bytes(4096))
    return path


@contextmanager
def surroundings(folder: Path) -> Iterator[bool]:
    """A small disk in the folder, and a network without other hosts; False where this user may not make them."""
    disk = folder / "disk"
    disk.mkdir()
    with ExitStack() as made:
        for make, unmake in (
            (["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], ["umount", str(disk)]),
            (["ip", "netns", "add", SPACE], ["ip", "netns", "del", SPACE]),
        ):
            if shutil.which(make[0]) is None or subprocess.run(make, capture_output=True).returncode != 0:
                print(f"cannot {' '.join(make)}: the disk and the network are left alone", flush=True)
                yield False
                return
            made.callback(subprocess.run, unmake, check=True)
        within("up")
        yield True
