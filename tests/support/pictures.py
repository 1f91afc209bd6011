"""Folders of small pictures, and files among them that are none."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def picture_folder(root: Path, train: int = 12, val: int = 6, classes: int = 2) -> Path:
    """`root`/train/CLASS/NN.png and val: so many pictures of noise of each class, all of them different."""
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(classes):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for place in range(count):
                pixels = draw.integers(0, 128, (20, 24, 3)) + 120 * number // (classes - 1)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{place:02}.png")
    return root


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file of so many pixels, whose few bytes a reader may take for gigabytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


# what is done to a file -> what is said of it
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "zero-byte": (emptied, "not an image"),
    "text": (written(b"<html>404 Not Found</html>"), "not an image"),
    "truncated": (truncated, "image file is truncated"),
    "a broken chunk": (written(png(24, 20) + b"\0\0\0\4\x9fqq\xdd" + bytes(8)), "broken PNG file (chunk"),
    "a bomb": (written(png(30_000, 30_000)), "more than 89478485 pixels"),
    "half a bomb": (written(png(10_000, 10_000)), "more than 89478485 pixels"),
    "a sliver": (written(png(2001, 2)), "2001 x 2 pixels"),
    "a broken TIFF": (written(b"II*\x00\x08\x00\x00\x00\x01\x00\x00\x01\x03\x00"), "not an image"),
    "no number in a PPM": (written(b"P6 9 x 255\n"), "invalid literal"),
    "a program": (
        written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        "PostScript is a program",
    ),
    "a pipe": (pipe, "not an image"),
    "a folder": (folder, "Is a directory"),
    "gone": (Path.unlink, "No such file or directory"),
}
