"""Files that are no images, one by one: what is said of them, and what stands for them in training."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy

from lookaround_ddp.config.schema import AugmentConfig
from lookaround_ddp.data.batches import BatchPlan, EvaluationBatches, Iterations
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.images import Files, Subset, next_readable
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.reading import UnreadableImage, read_rgb
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.errors import UserError
from tests.support.pictures import DAMAGES, emptied

PLAIN = AugmentConfig(before=(), after=())


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_is_no_image_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    damage, reason = DAMAGES[name]
    damage(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage) as raised:
            read_rgb(str(path))
    assert str(raised.value).startswith(f"{path} cannot be read ({reason}")
    assert str(raised.value).endswith("mend it, or train past such files with data.on_corrupt=skip")


def test_no_file_is_blamed_for_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    for error in (MemoryError(), OSError(24, "Too many open files")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(UserError, match=r"image.png cannot be read now: (out of memory|Too many open files)") as e:
            read_rgb(str(tmp_path / "image.png"))
        assert not isinstance(e.value, UnreadableImage)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (9, 9)).save(path)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(UnreadableImage, match="Permission denied"):
            read_rgb(str(path))
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", ["P", "PA", "LA", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_are_read_as_pil_reads_them(tmp_path: Path, mode: str) -> None:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8))
    path = tmp_path / ("image.tif" if mode in ("CMYK", "PA") else "image.png")
    pixels.convert(mode).save(path, **({"transparency": 3} if mode == "P" else {}))
    with Image.open(path) as image:
        assert read_rgb(str(path)).tobytes() == image.convert("RGB").tobytes()


def shades(folder: Path, count: int, bad: set[int]) -> Files:
    """Images of one shade each: number i has 10 i everywhere, and the label i; the bad ones are empty files."""
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (4, 4), (10 * number,) * 3).save(path)
        if number in bad:
            emptied(path)
    return Files([str(path) for path in paths], range(count))


def test_the_next_image_stands_for_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 and 2, and 4 at the end of 5. The first is named, once; one that is lost later is passed over as well."""
    split = shades(tmp_path, 5, {1, 2, 4})
    monkeypatch.setattr("lookaround_ddp.data.images._warned", [])
    for _ in range(2):
        assert [next_readable(split, index)[0] for index in range(5)] == [0, 3, 3, 3, 0]
    assert next_readable(split, 2)[1].getpixel((0, 0)) == (30, 30, 30)
    (tmp_path / "3.png").unlink()
    assert [next_readable(split, index)[0] for index in range(5)] == [0] * 5
    fate = "the next image stands for it, and for others like it"
    assert capsys.readouterr().err == f"warning: {tmp_path}/1.png cannot be read (not an image): {fate}\n"
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 5 images can be read, such as .*/2.png"):
        next_readable(split, 2)


def dataset(train: Files | Subset, test: Files | None = None) -> Dataset:
    return Dataset(train, test or train, 20, 3, 4, None, (0,) * 3, (1,) * 3, AutoAugmentPolicy.IMAGENET)


class Drawn:
    """An augmentation whose every pixel is the first draw."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.full((3, 4, 4), int(torch.randint(0, 256, ())), dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_substitutes_labels_and_the_draws_of_what_was_asked_for(tmp_path: Path, workers: int) -> None:
    """The split is of images 6, 5, 4, 3, 2, 1: in its order, 3 stands for 4, and 6 for 1."""
    split = Subset(shades(tmp_path, 7, {4, 1}), [6, 5, 4, 3, 2, 1])
    plan = BatchPlan(6, 3, 0, True)
    own = {0: train_pipelines(PLAIN, ["none", "tests.data.test_images.Drawn"], dataset(split), 0.0)}
    order = torch.cat([plan.indices(number, 0) for number in (0, 1)]).tolist()
    shown = [[6, 5, 3, 3, 2, 6][index] for index in order]
    found = [
        batches[0] for batches in load(Iterations(split, plan, own, skip=True), range(2), workers, torch.device("cpu"))
    ]
    assert [label for plain, _ in found for label in plain.labels.tolist()] == shown
    assert [int(image[0, 0, 0]) for plain, _ in found for image in plain.images] == [10 * each for each in shown]
    readable = Subset(shades(tmp_path, 7, set()), [6, 5, 4, 3, 2, 1])
    undamaged = [
        batches[0] for batches in load(Iterations(readable, plan, own), range(2), workers, torch.device("cpu"))
    ]
    for (_, drawn), (_, expected) in zip(found, undamaged, strict=True):
        assert torch.equal(drawn.images, expected.images)
    assert len({int(image[0, 0, 0]) for _, drawn in found for image in drawn.images}) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_from_a_worker_is_the_dataset_s_own_line(tmp_path: Path, workers: int) -> None:
    split = shades(tmp_path, 8, {5})
    own = {0: train_pipelines(PLAIN, ["none"], dataset(split), 0.0)}
    for batches in (Iterations(split, BatchPlan(8, 4, 0, True), own), EvaluationBatches(split, own[0][0].transform, 4)):
        with pytest.raises(UserError) as raised:
            list(load(batches, range(2), workers, torch.device("cpu")))
        assert str(raised.value) == str(UnreadableImage(f"{tmp_path}/5.png", "not an image"))
