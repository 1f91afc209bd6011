"""Splits of labelled images, in memory or in files, and what becomes of a file that is no image."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lookaround_ddp.errors import UserError, shortened

# An image may be at most so many times as long as wide: a longer one in a small file would be huge when resized.
SLIMMEST = 1000


_warned: list[str] = []  # the file that this process has warned of


# Errors of the machine: the file that happens to be opened has no fault, and other ranks may be able to read it.
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class Images(Protocol):
    """A split: labels by index at once, images by index on demand."""

    @property
    def labels(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def image(self, index: int) -> Image.Image: ...


@dataclass(frozen=True)
class Arrays:
    """Images in memory: uint8, shape (N, H, W) or (N, H, W, 3)."""

    pixels: np.ndarray
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


@dataclass(frozen=True)
class Files:
    """Images in files, read as RGB. `image` raises UnreadableImage."""

    paths: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image.Image:
        return read_rgb(self.paths[index])


@dataclass(frozen=True)
class Subset:
    """Some images of another split, in the given order."""

    whole: Images
    indices: Sequence[int]

    @property
    def labels(self) -> Sequence[int]:
        return [self.whole.labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.whole.name(self.indices[index])

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])


def in_memory(split: Images) -> bool:
    """Returns whether the images of a split, or those of which it is a subset, are an array."""
    return isinstance(split, Arrays) or (isinstance(split, Subset) and in_memory(split.whole))


def stored_pixels(split: Images, places: Sequence[int]) -> Tensor:
    """Returns copies of these images of a split in memory, as they are stored: uint8 (n, C, H, W)."""
    while isinstance(split, Subset):
        places, split = [split.indices[place] for place in places], split.whole
    assert isinstance(split, Arrays)
    stored = split.pixels[slice(places.start, places.stop) if isinstance(places, range) else places]
    stored = stored[:, None] if stored.ndim == 3 else stored.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(stored, order="C"))


class UnreadableImage(UserError):
    """A file is no image that can be trained on."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path} cannot be read ({reason}): mend it, or train past such files with data.on_corrupt=skip"
        )


def read_rgb(path: str) -> Image.Image:
    """Reads the image in a file, and converts it to RGB.

    Raises:
        UnreadableImage: it is not there, truncated, of another kind, or so large that PIL warns of it.
        UserError: the machine has run out of memory or of open files.
    """
    try:
        with warnings.catch_warnings(), open(path, "rb", opener=_without_waiting) as file:
            warnings.simplefilter("ignore")  # PIL's warnings do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format == "EPS":
                    raise UnreadableImage(path, "PostScript is a program")  # PIL would let Ghostscript run it
                if max(image.size) > SLIMMEST * min(image.size):
                    raise UnreadableImage(path, f"{image.width} x {image.height} pixels")
                return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # on a broken file PIL's readers may raise any exception
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE:
            raise UserError(f"{path} cannot be read now: {_reason(error)}") from None
        raise UnreadableImage(path, _reason(error)) from None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file so that a pipe that nobody writes into counts as empty; otherwise its reader would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def next_readable(split: Images, index: int) -> tuple[int, Image.Image]:
    """Returns the index and the image at `index` or, if that cannot be read, of the next image that can be.

    After the last image comes the first. The choice depends on the files alone, so that all ranks and workers make
    the same.

    Raises:
        UserError: none of the split can be read.
    """
    for step in range(len(split)):
        place = (index + step) % len(split)
        try:
            return place, split.image(place)
        except UnreadableImage as error:
            _warn(error)
    raise UserError(f"none of {len(split)} images can be read, such as {split.name(index)}")


def _warn(error: UnreadableImage) -> None:
    """Names the first file that this process passes over, and no other: there may be very many."""
    if not _warned:
        _warned.append(error.path)
        fate = "the next image stands for it, and for others like it"
        print(f"warning: {error.path} cannot be read ({error.reason}): {fate}", file=sys.stderr, flush=True)
