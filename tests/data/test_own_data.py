"""Images of somebody's own: what is made of them, and what is said of those that are not as they must be."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookaround_ddp.config.load import make_config
from lookaround_ddp.data import own_data
from lookaround_ddp.data.batches import BatchPlan, EvaluationBatches, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.device import resolved
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.transforms import evaluation_transform, train_pipelines
from lookaround_ddp.errors import BatchError, UserError
from lookaround_ddp.own_code import left_out
from tests.support.own_code import HERE, Split
from tests.support.own_code import named as named_data


def opened(name: str, **data: Any) -> Dataset:
    return open_dataset(make_config({"data": {"name": f"{HERE}.{name}", **data}}).data, seed=0)


def given(monkeypatch: pytest.MonkeyPatch, made: Any, **data: Any) -> Dataset:
    """The dataset of what somebody's function returns."""
    monkeypatch.setattr("tests.support.own_code.nothing", lambda root: made)
    return opened("nothing", **data)


def test_what_is_made_of_it() -> None:
    data = opened("named")
    assert (data.classes, data.channels, data.size, data.native) == (3, 1, 16, 16)
    assert data.class_names == ("dark", "light", "never")
    assert (data.mean, data.std) == ((0.449,), (0.226,))
    assert (len(data.train), len(data.test)) == (40, 12)
    assert list(data.train.labels[:3]) == [0, 1, 0]
    for index in range(4):  # PIL's and arrays
        assert np.asarray(data.train.image(index)).tolist() == np.asarray(Split(40)[index][0]).tolist()
    assert data.train.name(3) == f"image 3 of {HERE}.named's training split"
    data = opened("pair", size=24, mean=[0.5], std=[0.25], validation=8, train_images=20)
    assert (data.classes, data.class_names, data.size, data.native) == (2, (), 24, None)
    assert (data.mean, data.std) == ((0.5,), (0.25,))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (20, 8)
    assert set(data.train.indices).isdisjoint(data.validation.indices)
    shown = EvaluationBatches(data.test, evaluation_transform(data), 12)[0]
    assert shown.images.shape == (12, 1, 24, 24)
    assert shown.labels.tolist() == [0, 1] * 6
    config = make_config({"data": {"name": f"{HERE}.pair", "pipeline": "auto"}})
    assert resolved(config, data, left_out).data.pipeline == "workers"


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.array([[[1, 2, 3]]], np.uint8), [[[1, 2, 3]]]),
        (np.array([[[7]]], np.uint8), [[7]]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 4)), [[[1, 2, 3]]]),
        (Image.new("1", (1, 1), 1), [[255]]),
        (torch.tensor([[9]], dtype=torch.uint8), [[9]]),
    ],
)
def test_kinds_of_images(image: Any, shown: list[Any]) -> None:
    assert np.asarray(own_data.as_image(image)).tolist() == shown


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 2)), r"uint8 array \(H, W\) or \(H, W, 3\), and this is float64 of shape \(2, 2\)"),
        (np.zeros((3, 2, 2), np.uint8), r"this is uint8 of shape \(3, 2, 2\)"),
        ("a.png", r"this is <U5 of shape \(\)"),
        (object(), "this is object"),
        (Image.new("I;16", (1, 1)), "PIL's mode is I;16: convert it to 8 bits"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        own_data.as_image(image)


class Given(list[Any]):
    """A list of images that says what its labels are."""

    def __init__(self, items: list[Any], targets: Any) -> None:
        super().__init__(items)
        self.targets = targets


SQUARE = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, r"a pair \(train, test\), or something with both, and here is no pair"),
        (([(SQUARE, 0)], iter("a")), "a split has a length and items, and str_.*iterator has not"),
        (([(SQUARE, 0)], []), "a split is empty"),
        (([SQUARE], [SQUARE]), "an item is a pair of an image and its label, no ndarray"),
        (([(SQUARE[:2], 0)], [(SQUARE, 0)]), "its first image is no square: set data.size"),
        (([(SQUARE, 0.5)], [(SQUARE, 0)]), r"training split has 1 images, and its labels are float64 of shape \(1,\)"),
        (([(SQUARE, 0)], Given([(SQUARE, 0)], [0, 1])), r"test split has 1 images, and its labels are int64 of shape"),
        (([(SQUARE, 0), (SQUARE, -1)], [(SQUARE, 0)]), "number 1 has label -1, not one of 0 to 0"),
    ],
)
def test_what_is_no_dataset(monkeypatch: pytest.MonkeyPatch, made: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        given(monkeypatch, made)
    assert "\n" not in str(raised.value)


def test_images_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(SQUARE, 0), (SQUARE[:3], 0), (SQUARE, 1)]
    data = given(monkeypatch, (Given(items, [0, 0, 0]), items))
    with pytest.raises(BatchError, match=r"image 1 of .* has 4x3 pixels, and the first has 4x4: set data.size"):
        data.train.image(1)
    with pytest.raises(BatchError, match=r"image 2 of .* its label is 1, and that among all is 0"):
        data.train.image(2)
    data = given(monkeypatch, (items, items), size=8)
    assert evaluation_transform(data)(data.train.image(1)).shape == (1, 8, 8)


def test_code_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    for name, message, traced in (
        ("missing", f"dataset {HERE}.missing: module .* has no attribute 'missing'", False),
        ("Marks.x", "No module named 'tests.support.own_code.Marks'", False),
        ("margin", r"dataset .*: TypeError: margin\(\) missing 1 required positional argument: 'targets'", True),
        ("failing", r"TypeError: failing\(\) missing", True),
    ):
        with pytest.raises(UserError, match=message):
            opened(name)
        assert ("Traceback" in capsys.readouterr().err) == traced
    with pytest.raises(UserError, match="No module named 'nobodys': start from the folder in which it lies, or name"):
        open_dataset(make_config({"data": {"name": "nobodys.code.data"}}).data, seed=0)
    with pytest.raises(UserError, match=r"data.options are for a dataset of your own, not for digits"):
        open_dataset(make_config({"data": {"options": {"a": 1}}}).data, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_had(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends the training, with its traceback; or the next one stands for it, with its label."""
    config = make_config({"data": {"name": f"{HERE}.pair", "options": {"broken": [0, 4]}, "on_corrupt": "skip"}})
    data = open_dataset(config.data, seed=0)
    pipelines = {0: train_pipelines(config.augment, ["none"], data, 0.0)}
    plan = BatchPlan(40, 20, 0, True)
    taken = Iterations(data.train, plan, pipelines, skip=True)[0][0][0].labels
    wanted = [1 if index in (0, 4) else index % 2 for index in plan.indices(0, 0).tolist()]
    assert taken.tolist() == wanted
    with pytest.raises(BatchError, match=r"image [04] of .*training split: KeyError: 'image [04] is lost'") as raised:
        list(load(Iterations(data.train, plan, pipelines), range(2), workers, torch.device("cpu")))
    assert "own_code.py" in raised.value.trace
    assert pickle.loads(pickle.dumps(data.train)).labels == data.train.labels


def test_what_workers_cannot_have() -> None:
    data = named_data("")
    data.train.open = lambda: None
    with pytest.raises((AttributeError, pickle.PicklingError)) as raised:
        pickle.dumps(data.train)
    from lookaround_ddp.data.workers import explanation

    assert "let your own be picklable, or set data.workers=0" in str(explanation(raised.value))
