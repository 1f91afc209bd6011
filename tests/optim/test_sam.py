"""SAM and ASAM against hand-computed vectors and a twin in plain loops; alone, in a replica, and under DDP."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lookaround_ddp.config.load import make_config
from lookaround_ddp.data.batches import BatchPlan, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.world import World
from lookaround_ddp.optim.sam import climbed, frozen_statistics
from lookaround_ddp.training.replica import Replica
from tests.support.ranks import run, same_bits

SGD = {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.1}
VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}  # no batch-norm


def quadratic(weights: Tensor) -> Tensor:
    """L = (w_1^2 + 4 w_2^2) / 2, gradient (w_1, 4 w_2)."""
    return (weights * weights * torch.tensor([1.0, 4.0])).sum() / 2


def test_sam_climbs_rho_along_the_gradient() -> None:
    """At (3, 1) the gradient is (3, 4), of norm 5: e = 0.5 (0.6, 0.8), and the gradient there is (3.3, 5.6)."""
    weights = nn.Parameter(torch.tensor([3.0, 1.0]))
    quadratic(weights).backward()
    weights.grad *= 1024  # as a scaler's loss
    with climbed([("w", weights)], rho=0.5, loss_scale=torch.tensor(1024.0)):
        assert weights.tolist() == pytest.approx([3.3, 1.4], rel=1e-6)
        weights.grad = None
        quadratic(weights).backward()
    assert weights.tolist() == [3.0, 1.0]
    assert weights.grad.tolist() == pytest.approx([3.3, 5.6], rel=1e-6)


def test_the_norm_is_over_all_parameters() -> None:
    one, other, unused = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 3.0))
    (3 * one + 4 * other).backward()
    with climbed([("a", one), ("b", other), ("c", unused)], rho=1.0):
        assert [p.item() for p in (one, other, unused)] == pytest.approx([1.6, 2.8, 3.0])


def test_asam_climbs_in_proportion_to_the_weight() -> None:
    """T = (2.01, 1.01) for `weight` and 1 for `bias`; g = (1, 2), 3; T g = (2.01, 2.02), 3; e = rho T^2 g / |T g|."""
    layer = nn.Linear(2, 1)
    layer.weight.data.copy_(torch.tensor([[2.0, -1.0]]))
    layer.bias.data.fill_(5.0)
    layer.weight.grad, layer.bias.grad = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])
    norm = (2.01**2 + 2.02**2 + 3**2) ** 0.5
    with climbed(layer.named_parameters(), rho=0.5, adaptive=True, eta=0.01):
        expected = [2 + 0.5 * 2.01**2 / norm, -1 + 0.5 * 1.01**2 * 2 / norm]
        assert layer.weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)
        assert layer.bias.item() == pytest.approx(5 + 0.5 * 3 / norm, rel=1e-6)


@pytest.mark.parametrize("gradient", [0.0, float("inf"), float("nan")])
def test_the_weights_come_back_bit_for_bit(gradient: float) -> None:
    weights = nn.Parameter(torch.tensor([0.1, -0.0, 1e-30]))
    before = weights.detach().clone()
    weights.grad = torch.full((3,), gradient)
    with pytest.raises(KeyError), climbed([("w", weights)]):
        raise KeyError
    assert same_bits(weights.detach(), before)


def test_statistics_stay_those_of_the_clean_pass() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    before = copy.deepcopy(norm.state_dict())
    with frozen_statistics(norm):
        norm(torch.randn(8, 3) + 5)
    assert all(same_bits(value, before[name]) for name, value in norm.state_dict().items())
    assert before["num_batches_tracked"].item() == 1


def images_of(dataset: Dataset, batch: Any) -> Tensor:
    return (batch.images.float() / 255 - dataset.mean[0]) / dataset.std[0]


def twin_update(model: nn.Module, images: Tensor, labels: Tensor, rho: float, rate: float) -> None:
    """SAM's definition in plain loops, on two copies of the network: one that climbs, one that is moved."""
    top = copy.deepcopy(model)
    cross_entropy(model(images), labels).backward()
    norm = sum((p.grad**2).sum() for p in model.parameters()) ** 0.5
    for p, q in zip(model.parameters(), top.parameters(), strict=True):
        q.data += rho * p.grad / norm
    cross_entropy(top(images), labels).backward()
    for p, q in zip(model.parameters(), top.parameters(), strict=True):
        p.data -= rate * q.grad
        p.grad = None


def test_a_replica_with_sam_is_its_definition() -> None:
    """Three iterations of two updates each; weights and statistics."""
    dataset = open_dataset(make_config({}).data, seed=0)
    values = {"replicas": [["none", "crop"]] * 3, "optimizer": {**SGD, "sam": {"rho": 0.05}}, "model": {"width": 4}}
    config = make_config(values)
    pipelines = train_pipelines(config.augment, config.replicas[0], dataset, 0.0)
    batches = Iterations(dataset.train, BatchPlan(100, 20, 0, True), {0: pipelines})
    replica = Replica(config, 0, dataset, World(0, 1, 3, torch.device("cpu"), "none"))
    twin = copy.deepcopy(replica.model).train()
    for iteration in range(3):
        replica.step(batches[iteration][0], iteration, 0.1)
        for batch in batches[iteration][0]:
            twin_update(twin, images_of(dataset, batch), batch.labels, 0.05, 0.1)
    for (name, value), other in zip(replica.model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=1e-6, msg=name)


def under_ddp(rank: int, ranks: int) -> dict[str, Tensor]:
    """A network without batch-norm, trained for two updates by two shards of one replica."""
    torch.manual_seed(0)
    result = {}
    for perturbation in ("local", "synchronized"):
        values = {"replicas": [["none"]], "optimizer": {**SGD, "sam": {"rho": 0.5, "perturbation": perturbation}}}
        values |= {"model": {"name": "timm:vit_tiny_patch16_224", "options": VIT}}
        config = make_config(values)
        dataset = open_dataset(config.data, seed=0)
        pipelines = train_pipelines(config.augment, config.replicas[0], dataset, 0.0)
        world = World(rank, ranks, 1, torch.device("cpu"), "gloo", shard_group=dist.group.WORLD)
        replica = Replica(config, 0, dataset, world)
        twin = copy.deepcopy(replica.model).train()
        plan = BatchPlan(100, 20, 0, True)
        shards = [Iterations(dataset.train, plan, {0: pipelines}, shard, ranks) for shard in range(ranks)]
        for iteration in range(2):
            replica.step(shards[rank][iteration][0], iteration, 0.1)
            update_under_ddp(twin, [own[iteration][0][0] for own in shards], dataset, perturbation)
        result[f"{perturbation} found"], result[f"{perturbation} expected"] = flat(replica.model), flat(twin)
        places = {p.grad.untyped_storage().data_ptr() for p in replica.model.parameters()}
        result[f"{perturbation} places of gradients"] = torch.tensor(len(places))
    return result


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def update_under_ddp(model: nn.Module, shards: list[Any], dataset: Dataset, perturbation: str) -> None:
    """Each shard climbs by its own gradient, or by the mean of both; the mean gradient up there moves the weights."""

    def gradient(model: nn.Module, shard: Any) -> list[Tensor]:
        model.zero_grad()
        cross_entropy(model(images_of(dataset, shard)), shard.labels).backward()
        return [p.grad.clone() for p in model.parameters()]

    own = [gradient(model, shard) for shard in shards]
    mean = [(a + b) / 2 for a, b in zip(*own, strict=True)]
    tops = []
    for shard, mine in zip(shards, own, strict=True):
        direction = mine if perturbation == "local" else mean
        norm = sum((g**2).sum() for g in direction) ** 0.5
        top = copy.deepcopy(model)
        for p, g in zip(top.parameters(), direction, strict=True):
            p.data += 0.5 * g / norm
        tops.append(gradient(top, shard))
    for p, a, b in zip(model.parameters(), *tops, strict=True):
        p.data -= 0.1 * (a + b) / 2


def test_both_forms_under_ddp() -> None:
    """The gradients lie in the one bucket that the ranks sum, and nowhere else."""
    for found in run(under_ddp, 2):
        for form in ("local", "synchronized"):
            torch.testing.assert_close(found[f"{form} found"], found[f"{form} expected"], rtol=1e-4, atol=2e-6)
            assert found[f"{form} places of gradients"] == 1
        assert (found["local found"] - found["synchronized found"]).abs().max() > 1e-4
