"""The way of a person with images of their own, by the README alone: train, get names from `predict`, go on in timm."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from tests.support.limits import TEST_TIMEOUT
from tests.support.readme import commands, section
from tests.support.runs import ROOT

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
OWN = section("Your own images")


def picture(colour: str, seed: int) -> Image.Image:
    """A noisy picture of one colour, of a size of its own."""
    draws = np.random.default_rng(seed)
    size = (*draws.integers(34, 60, 2), 3)
    pixels = np.array(COLOURS[colour]) + draws.integers(-30, 31, size)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photographs(root: Path) -> None:
    """Where the README says that they belong."""
    places = re.findall(r"`DIR/(\w+)/CLASS/\*\.jpg`", OWN)
    assert places == ["train", "val"]
    for number, colour in enumerate(COLOURS):
        for place, count in zip(places, (12, 4), strict=True):
            folder = root / place / colour
            folder.mkdir(parents=True)
            for each in range(count):
                picture(colour, 1000 * number + 100 * places.index(place) + each).save(folder / f"{each}.jpg")


def test_from_images_to_names_and_to_timm(
    tmp_path: Path, activated: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command as it stands there, from the folder of the checkout; and the line of Python beside the last one."""
    photographs(tmp_path / "photos")
    for name in ("launch", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    train, predict, evaluate, export = (
        each.replace("DIR/", "photos/").replace("=DIR", "=photos") for each in commands(OWN)
    )
    said = {}
    for command in (train, predict, evaluate, export):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=activated, capture_output=True, text=True, timeout=TEST_TIMEOUT
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said[command] = done.stdout

    rows = [line.split() for line in said[predict].splitlines() if ".jpg" in line]
    files = [f"photos/val/{colour}/{number}.jpg" for colour in COLOURS for number in range(4)]
    assert [row[:2] for row in rows] == [[file, file.split("/")[2]] for file in files]
    assert all(len(row) == 5 for row in rows), "two classes and their probabilities"
    probabilities = [float(row[2]) for row in rows]

    classes = [line.split() for line in said[evaluate].splitlines()]
    assert [[name, "4", "100.00"] in [row[:3] for row in classes] for name in COLOURS] == [True] * 3, said[evaluate]

    (create,) = re.findall(r"# (timm\.create_model\(.*\))$", OWN, re.MULTILINE)
    assert create.replace('"', "'") in said[export]
    monkeypatch.chdir(tmp_path)
    network = eval(create, {"timm": timm}).eval()
    transform = create_transform(**resolve_data_config(model=network))
    with torch.no_grad():
        found = network(torch.stack([transform(Image.open(file)) for file in files])).softmax(dim=1)
    names = json.loads((tmp_path / "runs" / "timm" / "config.json").read_text())["label_names"]
    assert [names[number] for number in found.argmax(dim=1)] == [row[1] for row in rows]
    np.testing.assert_allclose(found.max(dim=1).values.numpy(), probabilities, atol=1e-3)
