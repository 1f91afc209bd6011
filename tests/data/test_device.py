"""Batches made on the device: who draws what, independent of how batches are cut, of ranks and of interruptions."""

from __future__ import annotations

import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F

from lookaround_ddp import seeds
from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.schema import Augmentation, AugmentConfig, DataConfig
from lookaround_ddp.data.batches import Plan
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.device.batches import DeviceIterations, batched, pixels, resolved
from lookaround_ddp.data.draws import Draws, mixed
from lookaround_ddp.data.images import Arrays, Files, Subset
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.transforms import NAMES, train_pipelines
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.state import check_resumable
from tests.support.runs import TINY, Job, train, weights
from tests.support.runs import die_at

PLAIN = AugmentConfig()
CPU = torch.device("cpu")
ALL = ["crop+hflip+vflip", "rotation", "randaugment", "autoaugment", "perspective", "equalize", "random_resized_crop"]


def dataset(images: int = 40, channels: int = 3, side: int = 20, size: int | None = None) -> Dataset:
    shape = (images, side, side, 3) if channels == 3 else (images, side, side)
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    split = Arrays(values, list(range(images)))
    half = (0.5,) * channels
    return Dataset(split, split, images, channels, size or side, side, half, half, T.AutoAugmentPolicy.CIFAR10)


def iterations(
    data: Dataset,
    own: list[Augmentation],
    batch: int = 40,
    seed: int = 0,
    replica: int = 0,
    shard: int = 0,
    shards: int = 1,
) -> DeviceIterations:
    pipelines = {replica: [batched(each) for each in train_pipelines(PLAIN, own, data, 0.0)]}
    plan = Plan(len(data.train), batch, seed, shared=True)
    return DeviceIterations(pixels(data.train, CPU), data.train, plan, pipelines, shard, shards)


def epoch(batches: DeviceIterations, number: int = 0, update: int = 0) -> Tensor:
    """The images of an epoch as the first replica sees them, by their place in the split: the labels are the places."""
    per_epoch = batches.plan.iterations
    hosted = [batches[number * per_epoch + i][0][update] for i in range(per_epoch)]
    order = torch.cat([batch.labels for batch in hosted]).argsort()
    return torch.cat([batch.images for batch in hosted])[order]


def test_the_generator_is_splitmix64() -> None:
    """The first outputs of the published generator with seed 1234567, as in its reference implementation's test."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % 2**64 for n in (1, 2, 3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    found = [int(each) % 2**64 for each in mixed(signed)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_uniform_and_unrelated() -> None:
    """Means of 100,000 draws lie within five standard errors; so do the correlations of neighbours."""
    drawn = Draws((0, 1, 2), torch.arange(50_000)).uniform(2)
    error = 1 / math.sqrt(drawn.numel())
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 5 * error / math.sqrt(12)
    assert drawn.var() == pytest.approx(1 / 12, rel=0.02)
    centred = drawn - 0.5
    for one, other in ((centred[:, 0], centred[:, 1]), (centred[1:, 0], centred[:-1, 0])):
        assert abs((one * other).mean()) * 12 < 5 / math.sqrt(len(one))
    counts = Draws((0, 1, 2), torch.arange(50_000)).integers(7, 3)
    assert counts[:, 0].bincount().tolist() == pytest.approx([50_000 / 7] * 7, rel=0.06)
    assert counts[:, 1].bincount().tolist() == pytest.approx([50_000 / 3] * 3, rel=0.03)


def test_draws_depend_on_the_key_the_image_and_the_place_alone() -> None:
    whole = Draws((0, 5), torch.tensor([3, 9, 4]))
    first, second = whole.uniform(2), whole.uniform(3)
    alone = Draws((0, 5), torch.tensor([9])).uniform(5)
    assert torch.equal(torch.cat([first, second], 1)[1:2], alone)
    assert len(torch.cat([first, second], 1).flatten().unique()) == 15
    assert not torch.equal(Draws((1, 5), torch.tensor([9])).uniform(5), alone)


@pytest.mark.parametrize("name", [*NAMES])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_name_makes_a_uint8_image_of_the_networks_size(name: str, channels: int) -> None:
    data = dataset(4, channels, 20, size=16)
    (batch,) = iterations(data, [name], 4)[0][0]
    assert batch.images.shape == (4, channels, 16, 16)
    assert batch.images.dtype == torch.uint8


def test_without_augmentation_they_are_the_images() -> None:
    for channels in (1, 3):
        data = dataset(6, channels)
        expected = torch.stack([F.pil_to_tensor(data.train.image(n)) for n in range(6)])
        assert torch.equal(epoch(iterations(data, ["none"], 4)), expected)
    some = Subset(data.train, [4, 1])
    assert torch.equal(pixels(some, CPU), expected[[4, 1]])


@pytest.mark.parametrize("own", ALL)
def test_an_image_is_augmented_alike_in_any_batch_and_on_any_rank(own: str) -> None:
    data = dataset()
    whole = epoch(iterations(data, [own]))
    assert torch.equal(epoch(iterations(data, [own], batch=7)), whole)
    shards = [iterations(data, [own], 16, shard=shard, shards=3) for shard in range(3)]
    images = torch.cat([shard[i][0][0].images for i in range(3) for shard in shards])
    labels = torch.cat([shard[i][0][0].labels for i in range(3) for shard in shards])
    assert torch.equal(images, whole[labels])


def test_what_an_image_draws_depends_on_seed_epoch_replica_and_augmentation() -> None:
    data = dataset(200)

    def differ(one: Tensor, other: Tensor) -> float:
        return (one != other).flatten(1).any(1).double().mean().item()

    base = epoch(iterations(data, ["crop", "crop"], 200))
    assert torch.equal(base, epoch(iterations(data, ["crop", "crop"], 200)))
    others = [
        epoch(iterations(data, ["crop", "crop"], 200, seed=1)),
        epoch(iterations(data, ["crop", "crop"], 200), number=1),
        epoch(iterations(data, ["crop", "crop"], 200, replica=1)),
        epoch(iterations(data, ["crop", "crop"], 200), update=1),
    ]
    for other in others:  # of 25 crops one is the same
        assert differ(base, other) > 0.85


def test_flips_and_crops_are_drawn_for_each_image_with_torchvisions_probabilities() -> None:
    data = dataset(1000, 1, 8)
    original = epoch(iterations(data, ["none"]))
    for own, probability, flipped in (("hflip", 0.5, original.flip(3)), ({"vflip": {"p": 0.2}}, 0.2, original.flip(2))):
        found = epoch(iterations(data, [own]))  # type: ignore[list-item]
        turned = (found == flipped).flatten(1).all(1)
        kept = (found == original).flatten(1).all(1)
        assert (turned ^ kept).all()
        assert turned.double().mean().item() == pytest.approx(probability, abs=5 * 0.5 / math.sqrt(1000))
    padded = F.pad(original, 1)
    found = epoch(iterations(data, ["crop"]))
    offsets = torch.zeros(1000, dtype=torch.int64)
    for number, (top, left) in enumerate((top, left) for top in range(3) for left in range(3)):
        offsets[(found == F.crop(padded, top, left, 8, 8)).flatten(1).all(1)] = number + 1
    assert offsets.bincount(minlength=10)[1:].tolist() == pytest.approx([1000 / 9] * 9, rel=0.35)
    assert (offsets > 0).all()


def test_rotations_are_uniform_between_their_bounds() -> None:
    """A single bright pixel in the middle of the right side rises by 15 sin(angle) rows, angle within 20 degrees."""
    values = np.zeros((500, 31, 31), np.uint8)
    values[:, 14:17, 29:31] = 255
    split = Arrays(values, list(range(500)))
    data = Dataset(split, split, 500, 1, 31, 31, (0.5,), (0.5,), T.AutoAugmentPolicy.CIFAR10)
    found = epoch(iterations(data, [{"rotation": {"degrees": [5, 20]}}])).double()
    rows = (found.sum(3) * torch.arange(31)).sum((1, 2)) / found.sum((1, 2, 3))
    angles = torch.asin((15 - rows) / 14.5).rad2deg()
    assert 3.5 < angles.min() < 6.5
    assert 18.5 < angles.max() < 21.5
    assert angles.mean().item() == pytest.approx(12.5, abs=1)


def test_randaugment_draws_its_operations_evenly() -> None:
    """Equal images tell the operations apart; 14 of them, of which 9 have one outcome and 5 geometric ones two each."""
    ramp = np.arange(400, dtype=np.float64).reshape(20, 20)
    picture = np.stack([30 + ramp / 3, 200 - ramp / 4, 60 + (ramp * 7) % 90], 2).astype(np.uint8)
    split = Arrays(np.repeat(picture[None], 3000, 0), list(range(3000)))
    data = Dataset(split, split, 3000, 3, 20, 20, (0.5,) * 3, (0.5,) * 3, T.AutoAugmentPolicy.CIFAR10)
    found = epoch(iterations(data, [{"randaugment": {"num_ops": 1, "magnitude": 15}}], 3000))
    _, counts = found.flatten(1).unique(dim=0, return_counts=True)
    signed, single = 9, 5  # two shears, two translations, rotation, four enhancements; the others have no sign
    assert len(counts) == 2 * signed + single
    expected = sorted([3000 / 28] * (2 * signed) + [3000 / 14] * single)
    assert sorted(counts.tolist()) == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_is_torchvisions_with_these_draws(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policies, probabilities, signs and the order of the two operations: torchvision's own code is the oracle."""
    data = dataset(300)
    found = epoch(iterations(data, [{"autoaugment": {"policy": policy}}]))
    theirs = T.AutoAugment(T.AutoAugmentPolicy(policy))
    for n in range(300):
        draws = Draws((0, seeds.AUGMENT, 0, 0, 0), torch.tensor([n]))
        drawn = int(draws.integers(25)), draws.uniform(2)[0], draws.integers(2, 2)[0]
        monkeypatch.setattr(T.AutoAugment, "get_params", staticmethod(lambda count, drawn=drawn: drawn))
        assert torch.equal(found[n], F.pil_to_tensor(theirs(data.train.image(n))))


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_torchvisions_with_these_draws(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(300, channels)
    found = epoch(iterations(data, [{"randaugment": {"num_ops": 3, "magnitude": 20}}]))
    theirs = T.RandAugment(num_ops=3, magnitude=20)
    for n in range(300):
        draws = Draws((0, seeds.AUGMENT, 0, 0, 0), torch.tensor([n]))
        numbers = iter([draws.integers(14, 2)[0] for _ in range(3)])
        last = torch.zeros(2, dtype=torch.int64)

        def randint(high: int, size: tuple[int], numbers: Any = numbers, last: Tensor = last) -> Tensor:
            """torch's, as RandAugment calls it: for an operation, and then perhaps for a sign."""
            if high == 14:
                last.copy_(next(numbers))
            return last[1 if high == 2 else 0].view(size)

        with monkeypatch.context() as patched:
            patched.setattr(torch, "randint", randint)
            expected = F.pil_to_tensor(theirs(data.train.image(n)))
        assert torch.equal(found[n], expected)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            "tests.data.test_batches.invert",
            "data.pipeline=device has no augmentation tests.data.test_batches.invert: set data.pipeline",
        ),
        ({"rotation": {"degrees": 5, "expand": True}}, "no augmentation rotation with expand True: set data.pipeline"),
        ({"perspective": {"fill": 7}}, "no augmentation perspective with fill 7"),
    ],
)
def test_what_a_device_cannot_do_is_named(own: Augmentation, message: str) -> None:
    (pipeline,) = train_pipelines(PLAIN, [own], dataset(), 0.0)
    with pytest.raises(UserError, match=message):
        batched(pipeline)


def test_auto_is_the_device_where_it_can_do_all() -> None:
    def pipeline(data: Dataset, *values: str) -> str:
        return resolved(load_config(None, values), data).data.pipeline

    data = dataset()
    files = Files(["one.png"], [0])
    photographs = Dataset(files, files, 1, 3, 20, None, (0.5,) * 3, (0.5,) * 3, T.AutoAugmentPolicy.IMAGENET)
    own = "replicas=[[hflip],[mixup,tests.data.test_batches.invert]]"
    assert pipeline(data) == "workers"
    assert pipeline(data, "data.pipeline=auto", "replicas=[[hflip],[mixup]]") == "device"
    assert pipeline(data, "data.pipeline=auto", own) == "workers"
    assert pipeline(photographs, "data.pipeline=auto") == "workers"
    with pytest.raises(UserError, match=r"device has no augmentation tests\.data\.test_batches\.invert"):
        pipeline(data, "data.pipeline=device", own)
    with pytest.raises(UserError, match=r"data\.pipeline=device is for images in memory, and these are in files"):
        pipeline(photographs, "data.pipeline=device")


def test_the_training_keeps_its_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = epoch(iterations(dataset(), ["randaugment"]))
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert torch.equal(epoch(iterations(dataset(), ["randaugment"])), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("own", ALL)
def test_a_gpu_makes_the_same_pixels_and_is_not_waited_for(own: str) -> None:
    data = dataset()
    batches = iterations(data, [own])
    on_gpu = iterations(data, [own])
    on_gpu.stored = batches.stored.cuda()
    on_gpu[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = on_gpu[0][0][0].images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), batches[0][0][0].images)


def test_the_loader_makes_them_in_its_own_process_whatever_the_workers() -> None:
    batches = iterations(open_dataset(DataConfig(train_images=40), 0), ["randaugment"], 16)
    found = [hosted[0][0].images for hosted in load(batches, range(5), 2, True)]
    assert all(torch.equal(images, batches[number][0][0].images) for number, images in enumerate(found))
