"""Splits of labelled images, in memory or in files, and what becomes of a file that is no image."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lookaround_ddp.data.own_data import ItemFailed
from lookaround_ddp.data.reading import UnreadableImage, read_rgb
from lookaround_ddp.errors import UserError

_warned: list[str] = []  # the file that this process has warned of


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
    return isinstance(whole_of(split), Arrays)


def whole_of(split: Images) -> Images:
    """Returns the split of which this is a subset, or itself."""
    while isinstance(split, Subset):
        split = split.whole
    return split


def stored_pixels(split: Images, places: Sequence[int]) -> Tensor:
    """Returns copies of these images of a split in memory, as they are stored: uint8 (n, C, H, W)."""
    while isinstance(split, Subset):
        places, split = [split.indices[place] for place in places], split.whole
    assert isinstance(split, Arrays)
    stored = split.pixels[slice(places.start, places.stop) if isinstance(places, range) else places]
    stored = stored[:, None] if stored.ndim == 3 else stored.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.array(stored, order="C"))


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
        except (UnreadableImage, ItemFailed) as error:
            _warn(error)
    raise UserError(f"none of {len(split)} images can be read, such as {split.name(index)}")


def _warn(error: UnreadableImage | ItemFailed) -> None:
    """Names the first file that this process passes over, and no other: there may be very many."""
    if not _warned:
        _warned.append(error.path)
        fate = "the next image stands for it, and for others like it"
        print(f"warning: {error.path} cannot be read ({error.reason}): {fate}", file=sys.stderr, flush=True)
