"""Code of somebody's own, as a config may name it by its path: an augmentation, a network, data and losses."""

from __future__ import annotations

import atexit
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

HERE = "tests.support.own_code"


class Marks:
    """Changes nothing in an image; makes a file when it is made, which tells that it was run."""

    def __init__(self, mark: str) -> None:
        Path(mark).touch()

    def __call__(self, image: Any) -> Any:
        return image


class HeldAtTheEnd:
    """Changes nothing in an image; lets the process that makes it end only when there is a file `go` in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        atexit.register(self.wait)

    def __call__(self, image: Any) -> Any:
        return image

    def wait(self) -> None:
        (self.folder / "held").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.1)


class Net(nn.Module):
    """Two layers; makes the file `mark`, if it is given one."""

    def __init__(self, classes: int, channels: int, hidden: int = 8, mark: str = "", fails: bool = False) -> None:
        super().__init__()
        if mark:
            Path(mark).touch()
        self.fails = fails
        self.inner, self.fc = nn.Linear(channels * 64, hidden), nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        if self.fails:
            raise OSError("no weights today")
        small = nn.functional.adaptive_avg_pool2d(images, 8)
        return self.fc(self.inner(small.flatten(1)).relu())


class Checkpointed(Net):
    """One that has what activation checkpointing asks for."""

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.checkpointing = enable


def lazy(classes: int, channels: int) -> nn.Module:
    return nn.LazyLinear(classes)


class Split:
    """16 x 16 grey images of two classes, dark and light, as PIL images or arrays in turn.

    Args:
        broken: the images that cannot be had.
    """

    def __init__(self, count: int, broken: tuple[int, ...] = (), side: int = 16) -> None:
        self.count, self.broken, self.side = count, broken, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index in self.broken:
            raise KeyError(f"image {index} is lost")
        pixels = np.full((16, self.side), 40 + 150 * (index % 2) + index % 7, np.uint8)
        pixels[:, : self.side // 2] += 20
        return (Image.fromarray(pixels) if index % 3 else pixels), index % 2


def pair(root: str, broken: tuple[int, ...] = (), train: int = 40) -> tuple[Split, Split]:
    """Data without anything that it need not have."""
    split = Split(train, tuple(broken))
    if broken:
        split.targets = torch.arange(train) % 2
    return split, Split(12)


def apart(root: str) -> tuple[Split, Split]:
    """Data of which each rank has as many images as its number says."""
    return Split(40 + 2 * int(os.environ.get("RANK", "0"))), Split(12)


def named(root: str, mark: str = "") -> SimpleNamespace:
    """Data with names, as attributes."""
    if mark:
        Path(mark).touch()
    return SimpleNamespace(train=Split(40), test=Split(12), class_names=["dark", "light", "never"])


def margin(logits: Tensor, targets: Tensor, by: float = 1.0) -> Tensor:
    """The multi-class margin loss."""
    return nn.functional.multi_margin_loss(logits, targets, margin=by)


def each(logits: Tensor, targets: Tensor) -> Tensor:
    """No mean."""
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def constant(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.ones(())


class Trained(nn.Linear):
    """A loss with parameters."""

    def __init__(self) -> None:
        super().__init__(2, 2)


class FailsLater:
    """Cross-entropy whose n-th call fails; of ranks, on the last one alone, as numpy does where it is told to."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if self.left == 0 and rank == ranks - 1:
            raise (ValueError if ranks == 1 else FloatingPointError)("no more losses")
        return nn.functional.cross_entropy(logits, targets)


def failing(logits: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError("no loss today")


def nothing(*arguments: Any) -> None:
    return None
