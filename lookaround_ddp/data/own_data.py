"""Images of somebody's own: what a function or class that a config names returns, and what is required of it.

It is called with data.root and data.options, and returns a pair of splits, or something with attributes `train` and
`test`. A split is a sequence, as torchvision's datasets are: `len(split)`, and `split[index]`, a pair of an image and
its label. Images are PIL's or uint8 arrays, (H, W) or (H, W, 3); labels are integers from 0 on. A split's `targets` or
`labels`, if it has them, are all of its labels: otherwise each image is read once, for its label, when the data is
opened. `classes` (or `class_names`) of what was returned, or of the training split, are the classes' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lookaround_ddp.config import DataConfig
from lookaround_ddp.errors import BatchError, UserError, told, trace_below
from lookaround_ddp.own_code import called, find

GREY = ("1", "L", "LA", "La")  # PIL's modes


class ItemFailed(BatchError):
    """An image of somebody's own that cannot be had."""

    def __init__(self, path: str, reason: str, trace: str = "") -> None:
        super().__init__(f"{path}: {reason}", trace)
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Own:
    """A split of somebody's own images, all shown in one mode. `image` raises ItemFailed.

    Args:
        side: pixels on each side of every image; None: they vary.
    """

    title: str
    items: Any
    labels: Sequence[int]
    mode: str  # as PIL calls it
    side: int | None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index} of {self.title}"

    def image(self, index: int) -> Image.Image:
        try:
            image, label = self.items[index]
            shown = as_image(image, self.mode)
        except (Exception, SystemExit) as error:
            trace = "" if isinstance(error, UserError) else trace_below(error)
            raise ItemFailed(self.name(index), told(error), trace) from error
        if self.side is not None and shown.size != (self.side, self.side):
            width, height = shown.size
            raise ItemFailed(
                self.name(index),
                f"it has {width}x{height} pixels, and the first has {self.side}x{self.side}: set data.size, to which "
                "all are then resized",
            )
        if int(label) != self.labels[index]:
            raise ItemFailed(self.name(index), f"its label is {int(label)}, and that among all is {self.labels[index]}")
        return shown


def open_own(config: DataConfig) -> tuple[Own, Own, tuple[str, ...]]:
    """Returns the training split, the test split, and the names of the classes; () without names.

    Raises:
        UserError: somebody's own code fails, or does not return what is described above.
    """
    name = config.name
    make = find(name, "dataset")
    with called(name, "dataset"):
        made = make(config.root, **config.options)
        train, test = _splits(made, name)
        mode, first = _first(train, name, config.on_corrupt == "skip")
        if first == 0 and config.size is None:
            raise UserError(f"dataset {name}: its first image is no square: set data.size, to which all are resized")
        side = first if config.size is None else None
        named = [getattr(each, key, None) for each in (made, train) for key in ("classes", "class_names")]
        names = tuple(map(str, next((each for each in named if each is not None), ())))
        own = [
            Own(f"{name}'s {kind} split", items, _labels(items, f"{name}'s {kind} split"), mode, side)
            for kind, items in (("training", train), ("test", test))
        ]
    return own[0], own[1], names


def as_image(image: Any, mode: str | None = None) -> Image.Image:
    """Returns a PIL image in this mode (None: L or RGB, whichever has its colours) of what a split has.

    Raises:
        UserError: it is neither a PIL image nor a uint8 array of grey values or colours; or it has colours, which
            that mode would drop.
    """
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))):
            what = f"{array.dtype} of shape {array.shape}" if array.dtype != object else type(image).__name__
            raise UserError(f"an image is PIL's, or a uint8 array (H, W) or (H, W, 3), and this is {what}")
        image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    if image.mode == "F" or image.mode.startswith("I"):
        raise UserError(f"PIL's mode is {image.mode}: convert it to 8 bits, L or RGB")
    if mode == "L" and image.mode not in GREY:
        raise UserError(f"it has colours ({image.mode}), and the first image is grey: convert all to RGB, or all to L")
    return image.convert(mode or ("L" if image.mode in ("1", "L") else "RGB"))


def _splits(made: Any, name: str) -> tuple[Any, Any]:
    if hasattr(made, "train") and hasattr(made, "test"):
        made = made.train, made.test
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise UserError(f"dataset {name}: it returns a pair (train, test), or something with both, and here is no pair")
    for split in made:
        if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
            raise UserError(f"dataset {name}: a split has a length and items, and {type(split).__name__} has not")
        if len(split) == 0:
            raise UserError(f"dataset {name}: a split is empty")
    return made[0], made[1]


def _first(split: Any, name: str, skip: bool) -> tuple[str, int]:
    """Returns the mode that all images are shown in, that of the first one, and its side.

    Args:
        skip: of the first one that can be had.
    """
    for index in range(len(split)):
        try:
            item = split[index]
        except Exception:
            if not skip or index + 1 == len(split):
                raise
            continue
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise UserError(f"dataset {name}: an item is a pair of an image and its label, no {type(item).__name__}")
        image = as_image(item[0])
        return image.mode, image.width if image.width == image.height else 0
    raise AssertionError("a split has items")


def _labels(split: Any, name: str) -> list[int]:
    """Returns the labels of all images of a split."""
    found = next((each for key in ("targets", "labels") if (each := getattr(split, key, None)) is not None), None)
    if found is None:
        found = [split[index][1] for index in range(len(split))]
    labels = np.asarray(found)
    if labels.shape != (len(split),) or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{name} has {len(split)} images, and its labels are {labels.dtype} of shape {labels.shape}: give each an "
            "integer"
        )
    return [int(each) for each in labels]
