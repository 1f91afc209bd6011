"""One update of a replica, against the same update written out: precision, smoothing, mixing, clipping, scaling."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp import seeds
from lookaround_ddp.config.changes import changed_keys
from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config
from lookaround_ddp.data.batches import Batch, BatchPlan, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.mixing import mixed
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.world import World
from lookaround_ddp.training.replica import Replica
from tests.support.ranks import same_state

WORLD = World(rank=0, size=1, replicas=3, device=torch.device("cpu"), backend="none")
PLAIN_SGD = {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.1}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(Config().data, seed=0)


def make(digits: Dataset, own: str = "none", **values: Any) -> tuple[Replica, list[Batch]]:
    """A replica and its first batch, of 20 images."""
    config = make_config({"replicas": [[own]] * 3, "optimizer": PLAIN_SGD, **values})
    pipelines = train_pipelines(config.augment, config.replicas[0], digits, config.label_smoothing)
    batches = Iterations(digits.train, BatchPlan(100, 20, 0, True), {0: pipelines})
    return Replica(config, 0, digits, WORLD), batches[0][0]


def forward(model: nn.Module, batch: Batch, digits: Dataset) -> Tensor:
    images = (batch.images.float() / 255 - digits.mean[0]) / digits.std[0]
    return model(images)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", None), ("tf32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_an_update_in_each_precision(digits: Dataset, precision: str, dtype: torch.dtype | None) -> None:
    """Forward in that precision, loss and weights in fp32: theta - lr * gradient, whatever the scaler's factor."""
    replica, batches = make(digits, precision=precision)
    twin = copy.deepcopy(replica.model).train()
    loss = replica.step(batches, 0, 0.1)

    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = forward(twin, batches[0], digits)
    assert logits.dtype == (dtype or torch.float32)
    expected = -logits.float().log_softmax(1)[torch.arange(20), batches[0].labels].mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    tolerance = 1e-6 if dtype is None else 2e-3  # the scaler's factor shifts what fp16 rounds to 0
    moved = 0.0
    for own, (name, other) in zip(replica.model.parameters(), twin.named_parameters(), strict=True):
        assert own.dtype == torch.float32
        assert other.grad is not None
        torch.testing.assert_close(own, other - 0.1 * other.grad, rtol=0, atol=tolerance, msg=name)
        moved = max(moved, (own - other).abs().max().item())
    assert moved > 10 * tolerance


def test_tf32_on_a_cpu_is_fp32(digits: Dataset) -> None:
    """The same bits after two updates, though it is another run: on a GPU they would differ."""
    states = []
    for precision in ("fp32", "tf32"):
        replica, batches = make(digits, precision=precision)
        for iteration in range(2):
            replica.step(batches, iteration, 0.1)
        states.append(replica.model.state_dict())
    assert same_state(*states)
    fp32, tf32 = (make_config({"precision": each}).identity() for each in ("fp32", "tf32"))
    assert list(changed_keys(fp32, tf32)) == ["precision: fp32 -> tf32"]


def test_label_smoothing(digits: Dataset) -> None:
    """(1 - e) of the label's -log p, and e of the mean over all classes."""
    replica, batches = make(digits, label_smoothing=0.1)
    logs = forward(copy.deepcopy(replica.model).train(), batches[0], digits).log_softmax(1)
    expected = -(0.9 * logs[torch.arange(20), batches[0].labels] + 0.1 * logs.mean(1)).mean()
    assert replica.step(batches, 0, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_mixes_images_and_targets_alike(digits: Dataset, name: str) -> None:
    replica, batches = make(digits, name)
    noise = torch.randint(0, 256, batches[0].images.shape, dtype=torch.uint8)
    batches = [replace(batches[0], images=noise)]  # no two images have a pixel in common
    mix, seen = batches[0].mix, []
    assert mix is not None

    def watched(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        before = images.clone()
        seen.append((before, *mix(images, targets)))
        return seen[-1][1:]

    batches = [replace(batches[0], mix=watched)]
    twin = copy.deepcopy(replica.model).train()
    loss = replica.step(batches, 0, 0.1)
    ((before, images, targets),) = seen
    one_hot = nn.functional.one_hot(batches[0].labels, 10).float()
    other = one_hot.flip(0)
    pairs = (one_hot * other).sum(1) == 0  # images of two classes
    share = (targets * one_hot).sum(1)[pairs]
    assert share.min() == share.max()
    torch.testing.assert_close(targets, share[0] * one_hot + (1 - share[0]) * other)
    if name == "mixup":
        torch.testing.assert_close(images, share[0] * before + (1 - share[0]) * before.flip(0))
    else:  # a rectangle of the other image, whose area is the other's share
        foreign = images != before
        assert torch.equal(images[foreign], before.flip(0)[foreign])
        assert foreign.any(dim=0).float().mean().item() == pytest.approx(1 - share[0].item(), abs=1e-6)
    expected = -(targets * twin(images).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("count", [3, 7])
def test_an_odd_batch_is_mixed_as_an_even_one(digits: Dataset, name: str, count: int) -> None:
    """Image i is of class i and has the value 4 ** i, so that targets and pixels both tell what was mixed.

    Every image has another one as its partner, and is one's partner: the batch's mean stays.
    """
    mix = make(digits, name)[1][0].mix
    assert mix is not None
    seeds.seed_python(8)  # both draw a share that is not near 0 or 1
    values = 4.0 ** torch.arange(count)
    images, targets = mixed(mix, values.view(-1, 1, 1, 1).repeat(1, 1, 16, 16), torch.arange(count))
    share = targets[0, 0]
    assert 0 < share < 1
    partners = targets[:, :count] - share * torch.eye(count)
    assert torch.equal(partners != 0, partners == partners.max())
    assert partners.diagonal().eq(0).all()
    for sums in (partners.sum(0), partners.sum(1)):
        torch.testing.assert_close(sums, (1 - share).expand(count))
    torch.testing.assert_close(images.mean((1, 2, 3)), targets[:, :count] @ values)
    torch.testing.assert_close(images.mean(), values.mean())


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_an_update_on_an_odd_batch_mixes(digits: Dataset, name: str) -> None:
    """With two ranks for a replica, each has 5 of 10 images: an odd share, too."""
    weights = []
    for own in ("none", name):
        replica, batches = make(digits, own)
        odd = replace(batches[0], images=batches[0].images[:5], labels=batches[0].labels[:5])
        replica.step([odd], 0, 0.1)
        weights.append(replica.model.state_dict())
    assert not same_state(*weights)


def test_a_clipped_gradient_has_the_norm_asked_for(digits: Dataset) -> None:
    replica, batches = make(digits, optimizer={**PLAIN_SGD, "clip_norm": 0.01})
    before = [parameter.detach().clone() for parameter in replica.model.parameters()]
    replica.step(batches, 0, 0.1)
    after = [parameter.detach() for parameter in replica.model.parameters()]
    moved = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True)) ** 0.5
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("average", "momentum"),
    [
        ({"k": 5}, 1 - 0.9**3),
        ({"nodes": {"size": 2, "k": 10}}, 1 - 0.9**2),
        ({"norm_momentum": "own"}, 0.1),
        ({"k": "never"}, 0.1),
    ],
)
def test_batch_norm_momentum(digits: Dataset, average: dict[str, Any], momentum: float) -> None:
    replica, _ = make(digits, average=average)
    replica.compensate_norm_momentum()
    momenta = [module.momentum for module in replica.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert momenta == pytest.approx([momentum] * 7 + [momentum] * 2)  # of the stem, 3 blocks and 2 shortcuts
