"""Datasets from files as others write them, and from damaged ones."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from lookaround_ddp.config.schema import AugmentConfig, DataConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.images import Arrays, Files
from lookaround_ddp.data.transforms import evaluation_transform, train_pipelines
from lookaround_ddp.errors import UserError

PLAIN = AugmentConfig(before=(), after=())


def idx(path: Path, array: np.ndarray, *, zipped: bool) -> None:
    content = struct.pack(f">i{array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()
    if zipped:
        path.with_suffix(".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(("folder", "zipped"), [(".", True), (".", False), ("FashionMNIST/raw", False)])
def test_fashion_mnist_from_a_flat_folder_or_torchvisions(tmp_path: Path, folder: str, zipped: bool) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
    for stem, count in (("train", 5), ("t10k", 2)):
        idx(tmp_path / folder / f"{stem}-images-idx3-ubyte", pixels[:count], zipped=zipped)
        idx(tmp_path / folder / f"{stem}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8), zipped=zipped)
    data = open_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), seed=0)
    assert (len(data.train), len(data.test), data.classes) == (5, 2, 10)
    assert np.array_equal(np.asarray(data.train.image(4)), pixels[4])
    assert list(data.train.labels) == [0, 1, 2, 3, 4]


def test_a_broken_idx_file_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(1000))
    for content in (b"no gzip", whole[:-20], whole[:12] + b"\xff\xff" + whole[14:]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UserError, match="train-images-idx3-ubyte is not a readable idx file"):
            open_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), seed=0)


DAMAGED_ARRAYS = {  # pixels and labels of Fashion-MNIST's training set, and what is said of them
    "fewer labels": ((3, 28, 28), [0, 1], "there are 3 of them and 2 labels"),
    "a label too high": ((3, 28, 28), [0, 10, 1], "number 1 has label 10, not one of 0 to 9"),
    "another size": ((3, 20, 28), [0, 1, 2], "they have 20x28 pixels, not 28x28"),
}


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("split", ["train", "t10k"])
@pytest.mark.parametrize("name", DAMAGED_ARRAYS)
def test_pixels_and_labels_that_do_not_belong_together(tmp_path: Path, name: str, split: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    shape, labels, message = DAMAGED_ARRAYS[name]
    for stem in ("train", "t10k"):
        pixels, own = (
            (np.zeros(shape, np.uint8), labels) if stem == split else (np.zeros((4, 28, 28), np.uint8), [0] * 4)
        )
        idx(tmp_path / folder / f"{stem}-images-idx3-ubyte", pixels, zipped=False)
        idx(tmp_path / folder / f"{stem}-labels-idx1-ubyte", np.array(own, np.uint8), zipped=False)
    kind = "training" if split == "train" else "test"
    with pytest.raises(UserError, match=f"^the {kind} images of fashion_mnist in {tmp_path}: {message}$"):
        open_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), seed=0)


def test_a_split_without_images(tmp_path: Path) -> None:
    for stem, count in (("train", 4), ("t10k", 0)):
        idx(tmp_path / f"{stem}-images-idx3-ubyte", np.zeros((count, 28, 28), np.uint8), zipped=False)
        idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.zeros(count, np.uint8), zipped=False)
    with pytest.raises(UserError, match=r"^the test images of fashion_mnist in .*: there are none$"):
        open_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), seed=0)


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\x0f\3" + bytes(16), b"\0\0\x08\3\xff\xff\xff\xff" + bytes(99)])
def test_damaged_files_in_torchvisions_folder_are_named(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        for rest in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (folder / f"{stem}-{rest}").write_bytes(content)
    with pytest.raises(UserError, match=f"no fashion_mnist under {tmp_path} "):
        open_dataset(DataConfig(name="fashion_mnist", root=str(tmp_path)), seed=0)


@pytest.mark.skipif(
    not os.environ.get("FASHION_MNIST"), reason="FASHION_MNIST=DIR names the folder of Debian's package"
)
def test_the_real_fashion_mnist() -> None:
    data = open_dataset(DataConfig(name="fashion_mnist", root=os.environ["FASHION_MNIST"]), seed=0)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert isinstance(data.train, Arrays)
    assert data.train.pixels.mean() / 255 == pytest.approx(data.mean[0], abs=1e-4)
    assert data.train.pixels.std() / 255 == pytest.approx(data.std[0], abs=1e-4)


def test_image_folders_of_any_size(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("L", (40 + number, 30), 100).save(folder / f"{number}.png")
    data = open_dataset(DataConfig(name="imagefolder", root=str(tmp_path), size=24), seed=0)
    assert (len(data.train), len(data.test), data.classes, data.channels) == (6, 4, 2, 3)
    assert isinstance(data.train, Files)
    assert list(data.train.labels) == [0, 0, 0, 1, 1, 1]
    assert evaluation_transform(data)(data.test.image(0)).shape == (3, 24, 24)
    for own in ("none", "random_resized_crop"):
        (pipeline,) = train_pipelines(PLAIN, [own], data, 0.0)
        assert pipeline.transform(data.train.image(2)).shape == (3, 24, 24)


def test_classes_of_which_one_side_has_no_images(tmp_path: Path) -> None:
    """Named with the side; allowed, the classes of both sides are numbered together."""
    for place in ("train/cat/0", "train/dog/0", "train/elk/0", "train/elk/1", "val/cat/0", "val/elk/0"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / f"{place}.png")
    for place in ("train/.ipynb_checkpoints", "train/elk/.ipynb_checkpoints", "val/.git"):
        (tmp_path / place).mkdir()
        Image.new("L", (9, 9)).save(tmp_path / place / "0-checkpoint.png")
    (tmp_path / "val" / "elk" / "._0.png").write_bytes(b"of a Mac")
    lacking = "{} has images of 2 of 3 classes, and none of {!r}: add some, or go on with data.missing_class=allow"

    def opened(missing: str = "error") -> tuple[list[int], list[int], int]:
        data = open_dataset(DataConfig(name="imagefolder", root=str(tmp_path), missing_class=missing), seed=0)
        return list(data.train.labels), list(data.test.labels), data.classes

    def said() -> str:
        with pytest.raises(UserError) as raised:
            opened()
        return str(raised.value)

    assert said() == lacking.format(tmp_path / "val", "dog")
    (tmp_path / "val" / "dog").mkdir()  # an empty folder is no better than none
    assert said() == lacking.format(tmp_path / "val", "dog")
    assert opened("allow") == ([0, 1, 2, 2], [0, 2], 3)
    Image.new("L", (9, 9)).save(tmp_path / "val" / "dog" / "0.png")
    assert opened() == ([0, 1, 2, 2], [0, 1, 2], 3)
    (tmp_path / "train" / "cat" / "0.png").unlink()
    assert said() == lacking.format(tmp_path / "train", "cat")
    assert opened("allow") == ([1, 2, 2], [0, 1, 2], 3)
    for side in ("val", "train"):
        shutil.rmtree(tmp_path / side)
        start = f"^no images in {tmp_path / side}: imagefolder reads .*"
        with pytest.raises(UserError, match=rf"{start}\(No such file or directory\)"):
            opened("allow")
        (tmp_path / side / "cat").mkdir(parents=True)
        with pytest.raises(UserError, match=rf"{start}images end in \.jpg"):
            opened("allow")
        Image.new("L", (9, 9)).save(tmp_path / side / "cat" / "0.png")
    assert opened() == ([0], [0], 1)


def test_stanford_cars_from_the_folder_that_torchvision_reads(tmp_path: Path) -> None:
    """Annotations are Matlab structures whose classes begin at 1."""
    folder = tmp_path / "stanford_cars"
    for split, file, classes in (
        ("train", "devkit/cars_train_annos.mat", (3, 196, 1)),
        ("test", "cars_test_annos_withlabels.mat", (2, 7)),
    ):
        (folder / f"cars_{split}").mkdir(parents=True)
        (folder / "devkit").mkdir(exist_ok=True)
        rows = np.zeros(len(classes), dtype=[("class", "O"), ("fname", "O")])
        for number, label in enumerate(classes):
            Image.new("RGB", (60 + number, 40), (10 * number, 0, 0)).save(folder / f"cars_{split}" / f"{number}.png")
            rows[number] = (label, f"{number}.png")
        savemat(folder / file, {"annotations": rows})
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["a", "b"], dtype=object)})
    data = open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path)), seed=0)
    assert (list(data.train.labels), list(data.test.labels)) == ([2, 195, 0], [1, 6])
    assert (data.classes, data.channels, data.size) == (196, 3, 224)
    assert data.train.image(2).getpixel((0, 0)) == (20, 0, 0)
    assert evaluation_transform(data)(data.test.image(1)).shape == (3, 224, 224)
    annotations = folder / "devkit" / "cars_train_annos.mat"
    whole = annotations.read_bytes()
    for content in (b"", whole[:200], b"no Matlab file" * 20):
        annotations.write_bytes(content)
        with pytest.raises(UserError, match=r"no Stanford Cars in .*/stanford_cars \(.*: it holds cars_train/"):
            open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path)), seed=0)
    annotations.write_bytes(whole)
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows[:0]})
    with pytest.raises(UserError, match="no Stanford Cars in "):
        open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path)), seed=0)
    rows[0] = (198, "0.png")
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    with pytest.raises(
        UserError, match=r"the test images of stanford_cars in .*: number 0 has label 197, not one of 0 to"
    ):
        open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path)), seed=0)
    (folder / "devkit" / "cars_meta.mat").unlink()
    with pytest.raises(UserError, match=r"no Stanford Cars in .*/stanford_cars \(.*cars_meta.mat.*: it holds"):
        open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path)), seed=0)
    with pytest.raises(UserError, match="cannot be downloaded any more"):
        open_dataset(DataConfig(name="stanford_cars", root=str(tmp_path), download=True), seed=0)
