"""What the device pipeline draws for each image: uniform, unrelated, and as torchvision draws it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F

from lookaround_ddp import seeds
from lookaround_ddp.config import Augmentation
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.draws import Draws, scrambled
from lookaround_ddp.data.images import Arrays
from tests.support.devices import dataset, epoch, iterations


def test_the_generator_is_splitmix64() -> None:
    """The first outputs of the published generator with seed 1234567, as in its reference implementation's test."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % 2**64 for n in (1, 2, 3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    found = [int(each) % 2**64 for each in scrambled(signed)]
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
    cases: list[tuple[Augmentation, float, Tensor]] = [
        ("hflip", 0.5, original.flip(3)),
        ({"vflip": {"p": 0.2}}, 0.2, original.flip(2)),
    ]
    for own, probability, flipped in cases:
        found = epoch(iterations(data, [own]))
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
