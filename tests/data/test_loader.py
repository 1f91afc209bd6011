"""What a loader's user is told when a batch could not be made or passed on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from lookaround_ddp.config.schema import AugmentConfig, DataConfig
from lookaround_ddp.data.batches import BatchPlan, Iterations
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.images import Arrays, Subset
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.errors import BatchError, UserError

CPU = torch.device("cpu")
PIXELS = np.arange(4, dtype=np.uint8).repeat(256).reshape(4, 16, 16)  # image 2 is all 2


class Odd(ValueError):
    """Cannot be unpickled with one argument."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def numerical(image: Image.Image) -> Any:
    raise FloatingPointError("0 / 0")


def mistaken(image: Image.Image) -> Any:
    raise UserError("not for the trainer")


def leaving(image: Image.Image) -> Any:
    sys.exit(0)


def exhausted(image: Image.Image) -> Any:
    return next(iter(()))


def odd(image: Image.Image) -> Any:
    raise Odd(1, 2)


def silent(image: Image.Image) -> Any:
    raise AssertionError


def forgetful(image: Image.Image) -> Any:
    return None


def small(image: Image.Image) -> Any:
    return image.resize((7, 7))


def on_image_2(own: Callable[[Any], Any], image: Image.Image) -> Any:
    return own(image) if image.getpixel((0, 0)) == 2 else image


@pytest.mark.parametrize(
    ("own", "cause"),
    [
        (numerical, "FloatingPointError: 0 / 0"),
        (mistaken, "not for the trainer"),
        (leaving, "SystemExit: 0"),
        (exhausted, "StopIteration"),
        (odd, "Odd: 1 and 2"),
        (silent, "AssertionError"),
        (forgetful, "it returned NoneType, no image"),
        (small, "it made 1x7x7 values of an image, and the network takes 1x16x16"),
    ],
)
def test_whatever_an_augmentation_does_is_one_kind_of_error(
    own: Callable[[Any], Any], cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.augment", lambda image: on_image_2(own, image))
    data = open_dataset(DataConfig(), seed=0)
    (pipeline,) = train_pipelines(AugmentConfig(before=(), after=()), [f"{__name__}.augment"], data, 0.0)
    split = Subset(Arrays(PIXELS, [0] * 4), [0, 2, 3])
    batches = Iterations(split, BatchPlan(3, 3, seed=0, shared=True), {0: [pipeline]})
    order = batches.plan.indices(0, 0).tolist()
    assert order[0] != 1, "the seed puts the bad image behind another"
    with pytest.raises(BatchError, match=f"augmentation {__name__}.augment of image 2: {cause}$"):
        next(load(batches, range(1), 0, CPU))


def augment(image: Image.Image) -> Any:
    """Stands for each of those above, which every test puts in its place."""
    raise AssertionError("no test has put one in its place")


class Does(Dataset[Any]):
    """Key -> the value of a function, or what it raises."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __getitem__(self, key: int) -> Any:
        return self.function()


class Unsendable:
    """What goes with an error while it is pickled."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended() -> None:
    os._exit(3)


def unknown() -> Any:
    return Unsendable(TypeError("of no known kind"))


def no_room() -> Any:
    return Unsendable(RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)"))


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        (killed, BatchError, "a loader worker was killed by SIGKILL: most likely the machine ran out of memory: "),
        (ended, BatchError, "a loader worker ended, with exit status 3$"),
        (unknown, BatchError, "loader workers: TypeError: of no known kind$"),
        (no_room, UserError, "/dev/shm is full: .* make it larger .docker run --shm-size=8g., or lower data.workers$"),
    ],
)
def test_a_worker_that_cannot_go_on_is_an_error_of_the_one_that_waits(
    function: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        list(load(Does(function), range(3), 1, CPU))
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
