"""The way of a person with images of their own: train, get names from `predict`, load the weights in timm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from lookaround_ddp.cli import main

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def picture(colour: str, seed: int) -> Image.Image:
    """A noisy picture of one colour, of a size of its own."""
    draws = np.random.default_rng(seed)
    size = (*draws.integers(34, 60, 2), 3)
    pixels = np.array(COLOURS[colour]) + draws.integers(-30, 31, size)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_from_images_to_names_and_to_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, colour in enumerate(COLOURS):
        for split, count in (("train", 12), ("val", 4)):
            folder = tmp_path / "photos" / split / colour
            folder.mkdir(parents=True)
            for place in range(count):
                picture(colour, 100 * number + place + 50 * (split == "val")).save(folder / f"{place}.png")
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, colour in enumerate(COLOURS):
        picture(colour, 1000 + number).save(mine / f"{colour}.png")

    run, model = tmp_path / "run", "model.name=timm:test_resnet"
    data = ["data.name=imagefolder", f"data.root={tmp_path}/photos", "data.size=32", "data.batch_size=12"]
    main(["train", f"out={run}", model, *data, "replicas=[[none], [hflip]]", "average.k=3", "epochs=8"])
    capsys.readouterr()

    main(["predict", str(run), str(mine)])
    said = [line.split() for line in capsys.readouterr().out.splitlines() if "png" in line]
    assert [line[:2] for line in said] == [[f"{mine}/{colour}.png", colour] for colour in COLOURS]
    probabilities = [float(line[2]) for line in said]

    main(["export", str(run), "--timm", str(tmp_path / "timm")])
    assert (
        capsys.readouterr().out == f"{tmp_path}/timm: timm.create_model('local-dir:{tmp_path}/timm', pretrained=True)\n"
    )
    network = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=network))
    with torch.no_grad():
        images = torch.stack([transform(Image.open(mine / f"{colour}.png")) for colour in COLOURS])
        found = network(images).softmax(dim=1)
    assert [network.pretrained_cfg["label_names"][number] for number in found.argmax(dim=1)] == list(COLOURS)
    np.testing.assert_allclose(found.max(dim=1).values.numpy(), probabilities, atol=1e-3)
