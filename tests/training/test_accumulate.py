"""A minibatch in parts, activations that are computed anew, and layers with rates of their own, against the plain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config
from lookaround_ddp.data.batches import Batch, BatchPlan, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.replica import Replica
from tests.support.own_code import HERE
from tests.support.ranks import same_state

WORLD = World(rank=0, size=1, replicas=3, device=torch.device("cpu"), backend="none")
SGD = {"momentum": 0.9, "weight_decay": 1e-3, "lr": 0.1}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(Config().data, seed=0)


def make(digits: Dataset, own: str = "none", **values: Any) -> tuple[Replica, Iterations]:
    """A replica, and batches of 22 of 88 images."""
    config = make_config({"replicas": [[own]] * 3, "optimizer": SGD, **values})
    pipelines = train_pipelines(config.augment, config.replicas[0], digits, config.label_smoothing)
    return Replica(config, 0, digits, WORLD), Iterations(digits.train, BatchPlan(88, 22, 0, True), {0: pipelines})


def trained(digits: Dataset, own: str = "none", double: bool = False, **values: Any) -> tuple[list[Tensor], Replica]:
    """Returns the losses of three iterations and the replica after them."""
    replica, batches = make(digits, own, **values)
    if double:
        replica.model.double()
        normalize = replica.normalize
        replica.normalize = lambda images: normalize(images).double()
        replica.loss = lambda logits, targets: nn.functional.cross_entropy(logits.double(), targets)
    return [replica.step(batches[iteration][0], iteration, 0.1) for iteration in range(3)], replica


OWN = {"model": {"name": f"{HERE}.Net"}}  # without batch-norm


@pytest.mark.parametrize(
    ("own", "values"),
    [
        ("none", {}),
        ("mixup", {}),
        ("none", {"precision": "fp16"}),
        ("none", {"optimizer": {**SGD, "sam": {"rho": 0.1}}}),
        ("none", {"optimizer": {**SGD, "clip_norm": 0.01}}),
        ("none", {"label_smoothing": 0.1, "precision": "bf16"}),
    ],
)
def test_parts_have_the_gradient_of_the_whole(digits: Dataset, own: str, values: dict[str, Any]) -> None:
    """22 images in parts of 6, 6, 5 and 5: three updates, and other sums of the same addends.

    fp32 has 24 bits: after three updates of rate 0.1 a weight of size 1 may differ by some 2^-24, a hundredth of 1e-5.
    Half precision rounds each product in the forward pass alike, and the gradients of the parts apart: 2^-8 of them.
    """
    whole, one = trained(digits, own, **OWN, **values)
    parts, other = trained(digits, own, **OWN, **values, data={"accumulate": 4})
    atol = 1e-6 if "precision" not in values else 1e-3
    torch.testing.assert_close(torch.stack(parts), torch.stack(whole), rtol=0, atol=10 * atol)
    start = dict(make(digits, own, **OWN, **values)[0].model.named_parameters())
    for name, weight in other.model.named_parameters():
        torch.testing.assert_close(weight, dict(one.model.named_parameters())[name], rtol=0, atol=atol)
    moved = max((weight - start[name]).abs().max().item() for name, weight in other.model.named_parameters())
    assert moved > 5 * atol


def test_parts_in_fp64(digits: Dataset) -> None:
    """In fp64 the logits and the loss are cast to fp32 by the trainer, so that the loss is put in their place."""
    whole, one = trained(digits, double=True, **OWN)
    for count in (2, 7, 11):
        parts, other = trained(digits, double=True, **OWN, data={"accumulate": count, "batch_size": 22})
        torch.testing.assert_close(torch.stack(parts), torch.stack(whole), rtol=0, atol=1e-7)
        for weight, expected in zip(other.model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)


def test_what_is_divided(digits: Dataset) -> None:
    """Parts have two images or more; batch-norm's statistics remember as many images as without parts."""
    replica, batches = make(digits, data={"accumulate": 8, "batch_size": 22})
    sizes: list[int] = []
    replica.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    (batch,) = batches[0][0]
    replica.step([batch], 0, 0.1)
    assert sizes == [3] * 6 + [2] * 2
    sizes.clear()
    replica.step([Batch(batch.images[:5], batch.labels[:5], 1.0)], 0, 0.1)
    assert sizes == [3, 2]
    momenta = {module.momentum for module in replica.model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {1 - 0.9 ** (1 / 8)}
    with pytest.raises(UserError, match="accumulate is 12: a minibatch of 22 images has at most 11 parts of 2 or more"):
        make_config({"data": {"accumulate": 12, "batch_size": 22}})


CHECKPOINTED = (
    {"model": {"name": "timm:resnet10t", "options": {"drop_path_rate": 0.5}, "dropout": 0.5}},
    {"model": {"name": "timm:vit_tiny_patch16_224", "options": {"img_size": 16, "depth": 2}, "dropout": 0.5}},
)


@pytest.mark.parametrize("values", CHECKPOINTED)
@pytest.mark.parametrize("more", [{}, {"optimizer": {**SGD, "sam": {}}, "data": {"accumulate": 3}}])
def test_checkpointing_gives_the_same_bits(digits: Dataset, values: dict[str, Any], more: dict[str, Any]) -> None:
    """Weights, batch-norm's statistics and counts: with dropout, and with what is drawn in the network's depth."""
    runs = []
    for checkpointing in (False, True):
        config = {**values, **more, "model": {**values["model"], "checkpointing": checkpointing}}
        calls = 0

        def counted(*arguments: Any) -> None:
            nonlocal calls
            calls += 1

        replica, batches = make(digits, **config)
        inner = [m for m in replica.model.modules() if type(m).__name__ in ("Block", "BasicBlock")]
        inner[0].register_forward_pre_hook(counted)  # computing anew stops before the end
        losses = [replica.step(batches[iteration][0], iteration, 0.1) for iteration in range(2)]
        runs.append(({**replica.model.state_dict(), "losses": torch.stack(losses)}, calls))
    (plain, once), (anew, twice) = runs
    assert twice == 2 * once > 0
    assert same_state(plain, anew)


def test_checkpointing_of_what_has_none(digits: Dataset) -> None:
    for name in ("resnet8", f"{HERE}.Net", "timm:dla46x_c"):
        with pytest.raises(UserError, match=f"model.checkpointing: {name} has no activation checkpointing"):
            make(digits, model={"name": name, "checkpointing": True})
    with_it, without = (make_config({"model": {"checkpointing": each}}).identity() for each in (True, False))
    assert with_it == without  # so that a run may go on with the other


@pytest.mark.parametrize("no_decay", ["none", "norm_bias"])
def test_layer_decay(digits: Dataset, no_decay: str) -> None:
    """A ViT of two blocks has the layers 0 (patches and positions), 1, 2 (blocks) and 3 (norm and head)."""
    replica, batches = make(
        digits,
        model={"name": "timm:vit_tiny_patch16_224", "options": {"img_size": 16, "depth": 2}},
        optimizer={"lr": 0.1, "momentum": 0, "weight_decay": 0.5, "layer_decay": 0.5, "no_decay": no_decay},
    )
    replica.step(batches[0][0], 0, 0.2)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in replica.optimizer.param_groups for p in g["params"]}
    weights = {name: rates[id(p)] for name, p in replica.model.named_parameters()}
    assert [
        weights[f"{name}.weight"] for name in ("patch_embed.proj", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1", "head")
    ] == [
        (0.2 * 0.5**3, 0.5),
        (0.2 * 0.5**2, 0.5),
        (0.2 * 0.5, 0.5),
        (0.2, 0.5),
    ]
    assert weights["blocks.0.mlp.fc1.bias"] == (0.2 * 0.5**2, 0.5 if no_decay == "none" else 0)


def test_layer_decay_of_what_has_no_layers(digits: Dataset) -> None:
    with pytest.raises(UserError, match=r"optimizer.layer_decay: nothing says which layer"):
        make(digits, optimizer={"layer_decay": 0.5})
    with pytest.raises(UserError, match=r"options.layer_decay would contradict optimizer.layer_decay"):
        make(digits, optimizer={"layer_decay": 0.5, "options": {"layer_decay": 0.5}})
