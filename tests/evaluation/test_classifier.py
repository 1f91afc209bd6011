"""A model file alone classifies images, as `evaluate` does with the run's data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lookaround_ddp.checkpoint import save_model
from lookaround_ddp.config.load import load_config
from lookaround_ddp.data import Subset, described, open_dataset
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import read_classifier
from lookaround_ddp.evaluation.evaluator import make_evaluator
from lookaround_ddp.models import create_model, placed

SIZES = [(40, 30), (23, 64), (16, 16), (300, 200)]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of images of two classes: all kinds of sizes, one of them grey, noise that a seed draws."""
    draws = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number, size in enumerate(SIZES):
                pixels = draws.integers(0, 256, (*size, 3), dtype=np.uint8)
                image = Image.fromarray(pixels if number != 2 else pixels[..., 0])
                image.save(tmp_path / split / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("data", ["imagefolder", "imagefolder in bf16", "digits", "digits at 24 px"])
def test_a_file_classifies_as_evaluate_does(photographs: Path, tmp_path: Path, data: str) -> None:
    values = {
        "imagefolder": ["data.name=imagefolder", f"data.root={photographs}", "data.size=16"],
        "imagefolder in bf16": [
            *("data.name=imagefolder", f"data.root={photographs}", "data.size=16"),
            *("precision=bf16", "channels_last=true"),
        ],
        "digits": [],
        "digits at 24 px": ["data.size=24", "data.mean=[0.4]", "data.std=[0.2]"],
    }[data]
    config = load_config(None, [*values, "model.width=4"])
    dataset = open_dataset(config.data, 0)
    torch.manual_seed(3)
    model = create_model(config.model, dataset.classes, dataset.channels).eval()
    path = tmp_path / "model.safetensors"
    save_model(path, model.state_dict(), described(dataset) | {"config": config.identity()})

    classifier = read_classifier(path)
    images = [dataset.test.image(index) for index in range(8)]
    world = World(0, 1, 1, torch.device("cpu"), "none")
    model = placed(model, config.channels_last, world.device)
    expected = make_evaluator(config, dataset, Subset(dataset.test, range(8)), world).logits(model, 0, 1)
    torch.testing.assert_close(classifier.logits(images), expected, rtol=0, atol=0)
    close = 0.05 if "bf16" in data else 1e-4  # a batch of one may be computed by other kernels
    torch.testing.assert_close(classifier.logits([images[3].convert("RGB")])[0], expected[3], rtol=close, atol=close)
    names = ("ant", "bee") if "imagefolder" in data else tuple("0123456789")
    assert classifier.class_names == names


def test_what_a_network_is_shown(tmp_path: Path) -> None:
    """Of 40 x 30 pixels the square of 16 in the middle of 24 x 18, which is what 16 px with a crop of 0.875 come to."""
    config = load_config(None, ["model.width=4"])
    model = create_model(config.model, 2, 3)
    own = {"classes": 2, "class_names": ["a", "b"], "channels": 3, "size": 16, "crop": 0.875}
    own |= {"interpolation": "bilinear", "mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 0.25]}
    save_model(tmp_path / "m.safetensors", model.state_dict(), own | {"config": config.identity()})
    classifier = read_classifier(tmp_path / "m.safetensors")
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    shown = np.asarray(image.resize((24, 18), Image.Resampling.BILINEAR).crop((4, 1, 20, 17)), dtype=np.float64)
    right = (shown / 255 - [0.5, 0.25, 0.0]) / [0.5, 0.5, 0.25]
    found = classifier.normalize(classifier.transform(image)[None])[0]
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), right, atol=1e-5)


def test_files_that_say_too_little(tmp_path: Path) -> None:
    config = load_config(None, ["model.width=4"])
    path, state = tmp_path / "old.safetensors", create_model(config.model, 10, 1).state_dict()
    save_model(path, state, {"classes": 10, "channels": 1, "config": config.identity()})
    with pytest.raises(UserError, match=r"does not say how .* older version of this package; `evaluate` can read it"):
        read_classifier(path)
    for metadata in ([], {}, {"classes": -1, "channels": 1}, {"classes": 10**12, "channels": 1}, {"classes": "x"}):
        save_file(load_file(path), path, {"lookaround_ddp": json.dumps(metadata)})
        with pytest.raises(UserError, match="is not a model of this package"):
            read_classifier(path)
