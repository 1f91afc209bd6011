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


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = bytes(1000)) -> bytes:
    """A PNG file of so many pixels: by default its beginning alone, which a reader may take for gigabytes.

    Args:
        colour: the format's number: 0 for grey, 2 for RGB.
        data: each row after a byte 0.
    """
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def tiff(order: str, bits: int, data: bytes, kind: int = 1, black_is_zero: int = 1, orientation: int = 1) -> bytes:
    """A TIFF file of a row of grey pixels.

    Args:
        order: of bytes, < or >.
        kind: 1 for unsigned integers, 2 for signed ones, 3 for floats.
    """
    offset = 8 + 2 + 12 * 11 + 4
    fields = {256: len(data) * 8 // bits, 257: 1, 258: bits, 259: 1, 262: black_is_zero, 273: offset}
    fields |= {274: orientation, 277: 1, 278: 1, 279: len(data), 339: kind}
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in fields.items())
    mark = {"<": b"II", ">": b"MM"}[order]
    return mark + struct.pack(f"{order}HIH", 42, 8, len(fields)) + entries + bytes(4) + data


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
    "a pipe": (pipe, "it is a pipe, a socket or a device, and was not opened"),
    "a folder": (folder, "Is a directory"),
    "gone": (Path.unlink, "No such file or directory"),
}
