"""Two images through a config before the training: what would fail at the first iteration is one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookaround_ddp import own_code
from lookaround_ddp.config.load import load_config
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import place_in_own_code
from lookaround_ddp.training import trial
from lookaround_ddp.training.trial import as_mistake, try_out

SMALL = ("data.train_images=40", "data.batch_size=20")


def attempt(*values: str, shards: int = 1) -> None:
    config = load_config(None, [*SMALL, *values])
    try_out(config, open_dataset(config.data, config.seed), shards)


def test_nothing_is_wrong() -> None:
    attempt("replicas=[[hflip, mixup], [crop], [randaugment]]", "optimizer.sam={}", "precision=bf16", shards=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["model.name=timm:vit_tiny_patch16_224"],
            "Input height .16. doesn't match .*: model.options.img_size=16 makes",
        ),
        (["model.name=timm:convnext_atto"], "images of 16 px are too small for timm:convnext_atto: raise data.size"),
        (["optimizer.name=adahessian"], "optimizer.name=adahessian needs second derivatives"),
        (
            ["replicas=[[none], [none, {torchvision.transforms.Resize: {size: 7}}]]"],
            "augmentation torchvision.transforms.Resize of image .*: it made 1x7x7 values of an image, and ",
        ),
    ],
)
def test_what_the_first_iteration_fails_at(values: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        attempt(*values)
    assert "\n" not in str(raised.value)


def test_parameters_that_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP would fail at the second iteration; a process for each replica does not mind."""
    made = trial.Replica

    def with_more(*arguments: object) -> object:
        replica = made(*arguments)
        replica.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
        return replica

    monkeypatch.setattr(trial, "Replica", with_more)
    attempt("replicas=[[none], [none]]")
    with pytest.raises(UserError, match=r"extra and 0 other parameters of resnet8 take no part.*at most 2 processes"):
        attempt("replicas=[[none], [none]]", shards=2)


def test_the_traceback_of_somebodys_own_code_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(None, [*SMALL])
    dataset = open_dataset(config.data, config.seed)
    for fails, shown in ((lambda: {}["key"], True), (partial(Image.new, "RGB", (-1, 0)), False)):
        with pytest.raises((KeyError, ValueError)) as raised:
            fails()
        place = place_in_own_code(raised.value)
        assert (place is not None and place.startswith(f"{__file__}, line ")) == shown
        line = str(as_mistake(raised.value, config, dataset))
        assert line.startswith("the first iteration fails: ")
        assert ("Traceback" in capsys.readouterr().err) == shown


def test_libraries_are_nobodys_own_code_wherever_they_are_installed() -> None:
    """On PYTHONPATH, as without the folder of installed packages in their path."""
    assert {Path(torch.__file__).parent, Path(np.__file__).parent} <= set(own_code._OTHERS)
