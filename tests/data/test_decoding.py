"""A photograph is decoded once for all that an iteration makes of it on a rank, and what is made is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lookaround_ddp import seeds
from lookaround_ddp.config.schema import AugmentConfig, DataConfig
from lookaround_ddp.data import images
from lookaround_ddp.data.batches import BatchPlan, Iterations, Single
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import Pipeline, train_pipelines
from tests.support.pictures import emptied, picture_folder

SEED, BATCH = 5, 7


class Stamp:
    """Somebody's own augmentation, which draws into the image that it is given."""

    def __call__(self, image: Image.Image) -> Image.Image:
        ImageDraw.Draw(image).rectangle((0, 0, *torch.randint(1, 9, (2,)).tolist()), fill=(255, 0, 0))
        return image


OWN = [
    ["tests.data.test_decoding.Stamp+random_resized_crop"],
    ["none", "random_resized_crop"],
    ["crop+hflip"],
]  # 4 updates


@pytest.fixture
def photographs(tmp_path: Path) -> Dataset:
    return open_dataset(DataConfig(name="imagefolder", root=str(picture_folder(tmp_path)), size=16), seed=0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    found: list[str] = []
    read = images.read_rgb
    monkeypatch.setattr(images, "read_rgb", lambda path: found.append(path) or read(path))
    return found


def pipelines_of(dataset: Dataset) -> dict[int, list[Pipeline]]:
    return {number: train_pipelines(AugmentConfig(), own, dataset, 0.0) for number, own in enumerate(OWN)}


def expected(
    dataset: Dataset, plan: BatchPlan, iteration: int, replica: int, number: int, pipeline: Pipeline
) -> Tensor:
    """Each image read for this augmentation alone, with its own draws."""
    made = []
    for index in plan.indices(iteration, replica).tolist():
        seeds.seed_cpu(SEED, seeds.AUGMENT, iteration // plan.iterations, replica, number, index)
        made.append(pipeline.transform(dataset.train.image(index)))
    return torch.stack(made)


@pytest.mark.parametrize(("shared", "reads"), [(True, 1), (False, 3)])
def test_once_for_all_augmentations_and_hosted_replicas(
    photographs: Dataset, decoded: list[str], shared: bool, reads: int
) -> None:
    """Once in an iteration where the replicas share its images; once for each replica where they have their own."""
    plan, own = BatchPlan(len(photographs.train), BATCH, SEED, shared), pipelines_of(photographs)
    batches = Iterations(photographs.train, plan, own)
    for iteration in (0, 4):  # of the first and of the second epoch of 24 images
        decoded.clear()
        hosted = batches[iteration]
        assert len(decoded) == reads * BATCH
        assert [len(updates) for updates in hosted] == [1, 2, 1]
        for replica, updates in enumerate(hosted):
            indices = plan.indices(iteration, replica).tolist()
            for number, batch in enumerate(updates):
                wanted = expected(photographs, plan, iteration, replica, number, own[replica][number])
                assert torch.equal(batch.images, wanted)
                assert batch.labels.tolist() == [photographs.train.labels[index] for index in indices]


def test_not_at_all_for_replicas_that_wait_for_a_single_network(photographs: Dataset, decoded: list[str]) -> None:
    own = pipelines_of(photographs)
    alone = Single(until=1, pipelines=[each for pipelines in own.values() for each in pipelines])
    plan = BatchPlan(len(photographs.train), BATCH, SEED, shared=True)
    first, others = (Iterations(photographs.train, plan, {j: own[j] for j in js}, single=alone) for js in ([0], [1, 2]))
    assert [len(updates) for updates in first[0]] == [4]
    assert len(decoded) == BATCH
    assert others[0] == [[], []]
    assert len(decoded) == BATCH


def test_a_file_that_is_no_image_is_tried_once_in_an_iteration(photographs: Dataset, decoded: list[str]) -> None:
    """The next one stands for it in all batches."""
    plan = BatchPlan(len(photographs.train), BATCH, SEED, shared=True)
    broken = plan.indices(0, 0).tolist()[0]
    emptied(Path(photographs.train.name(broken)))
    hosted = Iterations(photographs.train, plan, pipelines_of(photographs), skip=True)[0]
    assert len(decoded) == BATCH + 1
    after = photographs.train.image((broken + 1) % len(photographs.train))
    plain = train_pipelines(AugmentConfig(), ["none"], photographs, 0.0)[0]
    assert torch.equal(hosted[1][0].images[0], plain.transform(after))
