"""Images, orders and augmentations are functions of the seed and of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms import functional as F

from lookaround_ddp.config.schema import AugmentConfig, DataConfig
from lookaround_ddp.data.augmentations import AUGMENTATIONS, MIXES
from lookaround_ddp.data.batches import BatchPlan, EvaluationBatches, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.images import Arrays, Subset
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.transforms import evaluation_transform, train_pipelines
from lookaround_ddp.errors import UserError

PLAIN = AugmentConfig(before=(), after=())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(DataConfig(), seed=0)


def invert(image: Image.Image) -> Image.Image:
    """An augmentation of somebody's own, for its dotted path."""
    return F.invert(image)


class Noise:
    """One that draws from numpy and `random`, and returns a tensor."""

    def __init__(self, strength: int) -> None:
        self.strength = strength

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.random.randint(0, self.strength, (1, 16, 16), dtype=np.uint8))


def test_digits_are_the_1797_of_uci(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.test)) == (1000, 797)
    assert sorted(set(digits.test.labels)) == list(range(10))
    assert digits.train.image(0).size == (16, 16)


def test_every_epoch_visits_each_image_once() -> None:
    plan = BatchPlan(images=50, batch_size=16, seed=3, shared=True)
    assert plan.iterations == 4
    first = torch.cat([plan.indices(iteration, 0) for iteration in range(4)])
    second = torch.cat([plan.indices(iteration, 0) for iteration in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert len(plan.indices(3, 0)) == 2


def test_drop_last_leaves_out_the_smaller_batch() -> None:
    plan = BatchPlan(images=50, batch_size=16, seed=3, shared=True, drop_last=True)
    assert plan.iterations == 3
    assert {len(plan.indices(iteration, 0)) for iteration in range(6)} == {16}


def test_shared_batches_are_the_same_for_all_replicas_and_independent_ones_are_not() -> None:
    shared = BatchPlan(images=50, batch_size=16, seed=3, shared=True)
    independent = BatchPlan(images=50, batch_size=16, seed=3, shared=False)
    assert shared.indices(5, 0).tolist() == shared.indices(5, 2).tolist()
    assert independent.indices(5, 0).tolist() != independent.indices(5, 2).tolist()


@pytest.mark.parametrize(("images", "batch", "shards"), [(33, 16, 1), (34, 16, 2), (3, 4, 2)])
def test_a_batch_too_small_for_batch_norm_or_the_ranks_is_refused(images: int, batch: int, shards: int) -> None:
    with pytest.raises(UserError, match="smallest batch"):
        BatchPlan(images, batch, 0, True).check(shards)


def test_shards_split_the_replicas_batch_and_weigh_it(digits: Dataset) -> None:
    """7 images on 2 ranks: 4 and 3; their shares are 4 * 2 / 7 and 3 * 2 / 7."""
    plan = BatchPlan(images=7, batch_size=7, seed=0, shared=True)
    split = Subset(digits.train, range(7))
    pipelines = {0: train_pipelines(PLAIN, ["none"], digits, 0.0)}
    whole = Iterations(split, plan, pipelines)[0][0][0]
    halves = [Iterations(split, plan, pipelines, shard, 2)[0][0][0] for shard in (0, 1)]
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)
    assert torch.equal(torch.cat([half.labels for half in halves]), whole.labels)
    assert [half.share for half in halves] == [8 / 7, 6 / 7]
    assert whole.share == 1.0


def test_an_augmentation_depends_on_seed_epoch_replica_and_place(digits: Dataset) -> None:
    split = Subset(digits.train, range(8))

    def images(seed: int = 0, iteration: int = 0, replica: int = 0, own: int = 0) -> torch.Tensor:
        """The image number 3 of the split, as the key augments it."""
        plan = BatchPlan(8, 8, seed, True)
        pipelines = {replica: train_pipelines(PLAIN, ["perspective", "perspective"], digits, 0.0)}
        place = plan.indices(iteration, replica).tolist().index(3)
        return Iterations(split, plan, pipelines)[iteration][0][own].images[place]

    draws = [
        images(seed, epoch, replica, own) for seed in (0, 1) for epoch in (0, 1) for replica in (0, 1) for own in (0, 1)
    ]
    assert torch.equal(images(), draws[0])
    assert len({draw.numpy().tobytes() for draw in draws}) > 8  # half of the perspectives leave the image alone


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_deliver_the_same_batches_in_order(digits: Dataset, workers: int) -> None:
    pipelines = {
        0: train_pipelines(PLAIN, ["randaugment"], digits, 0.0),
        2: train_pipelines(PLAIN, ["crop"], digits, 0.0),
    }
    batches = Iterations(Subset(digits.train, range(40)), BatchPlan(40, 16, 0, True), pipelines)
    expected = [
        batch.images
        for hosted in load(batches, range(2, 6), 0, torch.device("cpu"))
        for updates in hosted
        for batch in updates
    ]
    delivered = [
        batch.images
        for hosted in load(batches, range(2, 6), workers, torch.device("cpu"))
        for updates in hosted
        for batch in updates
    ]
    assert len(delivered) == 8
    assert all(torch.equal(one, other) for one, other in zip(delivered, expected, strict=True))


def test_names_are_torchvisions_transforms_with_the_papers_values(digits: Dataset) -> None:
    made = {name: maker(digits) for name, maker in AUGMENTATIONS.items()}
    assert repr(made["crop"]) == "RandomCrop(size=(16, 16), padding=2)"
    assert made["rotation"].degrees == [-15.0, 15.0]
    assert (made["hflip"].p, made["vflip"].p, made["equalize"].p) == (0.5, 0.5, 0.5)
    assert made["autoaugment"].policy == T.AutoAugmentPolicy.SVHN
    assert (made["randaugment"].num_ops, made["randaugment"].magnitude) == (2, 9)
    assert isinstance(made["perspective"], T.RandomPerspective)
    assert made["random_resized_crop"].size == (16, 16)


@pytest.mark.parametrize("name", sorted({*AUGMENTATIONS, *MIXES}))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_name_makes_a_uint8_image_of_the_networks_size(name: str, channels: int, digits: Dataset) -> None:
    shape = (4, 20, 20) if channels == 1 else (4, 20, 20, 3)
    split = Arrays(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), [0, 1, 2, 3])
    data = Dataset(
        split, split, 10, channels, 16, 20, (0.5,) * channels, (0.5,) * channels, T.AutoAugmentPolicy.CIFAR10
    )
    batch = Iterations(split, BatchPlan(4, 4, 0, True), {0: train_pipelines(PLAIN, [name], data, 0.0)})[0][0][0]
    assert batch.images.shape == (4, channels, 16, 16)
    assert batch.images.dtype == torch.uint8


def test_before_own_and_after_are_composed_in_this_order(digits: Dataset) -> None:
    config = AugmentConfig(before=({"rotation": {"degrees": 3}},), after=("vflip",))
    (pipeline,) = train_pipelines(config, ["hflip+crop"], digits, 0.0)
    names = [type(step).__name__ for _, step in pipeline.named]
    assert names == ["RandomRotation", "RandomHorizontalFlip", "RandomCrop", "RandomVerticalFlip"]


def test_somebodys_own_augmentation_by_its_path(digits: Dataset) -> None:
    (pipeline,) = train_pipelines(PLAIN, ["tests.data.test_batches.invert"], digits, 0.0)
    image = digits.train.image(0)
    assert torch.equal(pipeline.transform(image), 255 - F.pil_to_tensor(image))
    noise = {0: train_pipelines(PLAIN, [{"tests.data.test_batches.Noise": {"strength": 9}}], digits, 0.0)}
    batches = Iterations(digits.train, BatchPlan(16, 8, 0, True), noise)
    assert torch.equal(batches[1][0][0].images, batches[1][0][0].images)
    assert batches[1][0][0].images.max() == 8


def test_evaluation_batches_hold_every_image_once_and_in_order(digits: Dataset) -> None:
    batches = EvaluationBatches(digits.test, evaluation_transform(digits), 100)
    assert len(batches) == 8
    labels = torch.cat([batches[number].labels for number in range(8)])
    assert labels.tolist() == list(digits.test.labels)
    assert torch.equal(batches[7].images[-1], F.pil_to_tensor(digits.test.image(796)))


def test_validation_is_held_out_of_the_training_images() -> None:
    data = open_dataset(DataConfig(validation=200, train_images=300), seed=1)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (300, 200, 797)
    assert isinstance(data.train, Subset)
    assert isinstance(data.validation, Subset)
    assert not {*data.train.indices} & {*data.validation.indices}


def test_autoaugment_with_another_policy() -> None:
    """By default that of the dataset: digits are augmented as house numbers are."""
    digits = open_dataset(DataConfig(), seed=0)
    for entry, policy in (("autoaugment", "svhn"), ({"autoaugment": {"policy": "imagenet"}}, "imagenet")):
        (pipeline,) = train_pipelines(PLAIN, [entry], digits, 0.0)
        assert pipeline.named[0][1].policy.value == policy
    with pytest.raises(UserError, match="policy is 'cars': should be 'imagenet', 'cifar10' or 'svhn'"):
        train_pipelines(PLAIN, [{"autoaugment": {"policy": "cars"}}], digits, 0.0)
