"""The digits are scikit-learn's, whichever way they are read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lookaround_ddp.data import digits as module


@pytest.mark.parametrize("there", [True, False])
def test_they_are_those_of_scikit_learn(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not there:
        monkeypatch.setattr("pathlib.Path.is_file", lambda path: False)
    pixels, labels = module.digits.__wrapped__()
    expected = load_digits()
    assert list(labels) == expected.target.tolist()
    for place in (0, 999, 1796):
        grey = np.floor(expected.images[place] * 255 / 16).astype(np.uint8)
        image = Image.fromarray(grey).resize((16, 16), Image.Resampling.BILINEAR)
        assert (pixels[place] == np.asarray(image)).all()
    assert pixels.shape == (1797, 16, 16)
    assert pixels.dtype == np.uint8
