"""What a network must know of its images, as values that a file of it can hold."""

from __future__ import annotations

from typing import Any

from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.transforms import INTERPOLATION, crop_of


def described(dataset: Dataset) -> dict[str, Any]:
    """Returns what it takes to show a network images as `evaluate` does, and to name what it sees; JSON-able.

    `crop` is the share of an image's shorter side that the central square of `size` pixels shows; mean and std are of
    pixels between 0 and 1.
    """
    named = len(dataset.class_names) == dataset.classes
    return {
        "classes": dataset.classes,
        "class_names": list(dataset.class_names if named else map(str, range(dataset.classes))),
        "channels": dataset.channels,
        "size": dataset.size,
        "crop": crop_of(dataset),
        "interpolation": INTERPOLATION.value,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
