"""What is exported computes what the classifier does, in the hands of other programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import export, read_classifier
from lookaround_ddp.evaluation.export import crop_for_timm, export_onnx, export_timm
from tests.support.classifiers import model_file

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 50, 70, 3), dtype=np.uint8)

KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a convolutional network": (["model.name=timm:test_resnet.r160_in1k"], {}),
    "a transformer at 32 px": (["model.name=timm:test_vit", "model.options.img_size=32"], {}),
    "of grey images": (
        ["model.name=timm:test_efficientnet", "model.dropout=0.5"],
        {"channels": 1, "mean": [0.4], "std": [0.3], "crop": 1.0},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_timm_loads_it(kind: str, tmp_path: Path) -> None:
    """The same weights, pixels and logits, bit for bit; what timm normalizes differs in the last place."""
    values, described = KINDS[kind]
    file = model_file(tmp_path / "m.safetensors", *values, **described)
    classifier = read_classifier(file)
    export_timm(classifier, file, tmp_path / "new" / "folder")
    network = timm.create_model(f"local-dir:{tmp_path}/new/folder", pretrained=True).eval()

    data = resolve_data_config(model=network)
    images = [Image.fromarray(pixels).convert(classifier.mode) for pixels in PIXELS]
    shown = torch.stack([classifier.shown(image) for image in images])
    theirs = create_transform(**data, is_training=False, use_prefetcher=True)
    assert torch.equal(torch.stack([torch.as_tensor(theirs(image)) for image in images]), shown)
    with torch.no_grad():
        assert torch.equal(network(classifier.normalize(shown)), classifier.logits(images))
        whole = create_transform(**data, is_training=False)
        found = network(torch.stack([whole(image) for image in images]))
    torch.testing.assert_close(found, classifier.logits(images), rtol=1e-4, atol=1e-5)
    assert network.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
    assert network.num_classes == 3
    assert read_classifier(tmp_path / "new" / "folder" / "model.safetensors").class_names == ("ant", "bee", "cat")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_crops_are_the_same() -> None:
    for size in range(1, 1025):
        for crop in (0.875, 1.0):
            assert math.floor(size / crop_for_timm(size, crop)) == round(size / crop)


def test_what_timm_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = model_file(tmp_path / "own.safetensors", "model.width=4")
    with pytest.raises(UserError, match="timm has no network resnet8, it is this package's own: use --onnx"):
        export_timm(read_classifier(own), own, tmp_path / "folder")
    file = model_file(tmp_path / "m.safetensors", "model.name=timm:test_resnet")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for there in (tmp_path / "full", file):
        with pytest.raises(UserError, match="is there already: give another --timm"):
            export_timm(read_classifier(file), file, there)
    classifier = read_classifier(file)
    # a version of timm that makes something else of the same folder
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="timm makes another network of timm:test_resnet than was trained"):
        export_timm(classifier, file, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_onnx_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    classifier = read_classifier(model_file(tmp_path / "m.safetensors", "model.width=4"))
    with pytest.raises(UserError, match=r"--onnx needs onnx and onnxscript: pip install 'lookaround_ddp\[onnx\]'"):
        export_onnx(classifier, tmp_path / "m.onnx")


@pytest.mark.parametrize("model", ["resnet8", "timm:test_vit"])
def test_onnx(model: str, tmp_path: Path) -> None:
    """Another program computes the same logits, of any number of images, and finds in the file how to show them."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: the extra `onnx`")
    options = ["model.options.img_size=32"] if model.startswith("timm") else ["model.width=4"]
    classifier = read_classifier(model_file(tmp_path / "m.safetensors", f"model.name={model}", *options))
    export_onnx(classifier, tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["class_names"] == ["ant", "bee", "cat"]
    assert (about["size"], about["crop"], about["interpolation"]) == (32, 0.875, "bilinear")
    for count in (1, 4):
        images = [Image.fromarray(pixels) for pixels in PIXELS[:count]]
        shown = np.stack([classifier.shown(image).numpy() for image in images])
        mean, std = (np.array(about[key], np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
        (logits,) = session.run(["logits"], {"images": ((shown / np.float32(255)) - mean) / std})
        np.testing.assert_allclose(logits, classifier.logits(images).numpy(), rtol=1e-3, atol=1e-4)
