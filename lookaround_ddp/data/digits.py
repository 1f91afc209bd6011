"""The handwritten digits that come with scikit-learn, read without importing it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@cache
def digits() -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Reads the 1,797 digits (UCI optdigits): uint8 (1797, 16, 16), enlarged from 8 x 8, and their labels.

    They are in a file of scikit-learn's, which itself takes a second to import, on each rank.
    """
    places = find_spec("sklearn")
    assert places is not None  # it is installed with this package
    assert places.origin is not None
    file = Path(places.origin).with_name("datasets") / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",") if file.is_file() else _imported()
    small = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    resized = [Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR) for pixels in small]
    return np.stack([np.asarray(image) for image in resized]), tuple(int(label) for label in table[:, -1])


def _imported() -> NDArray[np.float64]:
    """Asks a version of scikit-learn that keeps its file elsewhere: (1797, 65), the labels last."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.column_stack([found.data, found.target])
