"""`averaged()` lends the mean model and gives every replica back, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lookaround_ddp import Lookaround
from tests.support.ranks import run, same_bits, same_state

State = dict[str, Tensor]
Three = dict[str, list[Any]]
AVERAGED = [f"{layer}.{kind}" for layer in ("conv", "norm", "head") for kind in ("weight", "bias")]
AVERAGED += ["norm.running_mean", "norm.running_var"]
LOCAL = ["norm.num_batches_tracked", "vector"]


class Net(nn.Module):
    """A channels_last convolution, batch-norm, and a floating-point buffer that stays with its replica."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.register_buffer("vector", torch.zeros(4))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        self.vector += x.mean()
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)) + self.vector)


def snapshot(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(replicas: Sequence[int], group: dist.ProcessGroup | None, lending: bool) -> list[dict[str, Any]]:
    """10 iterations, k = 4. Lends phi after iterations 2 (harmed), 7 (the block raises), 8 and 10."""
    models = []
    for replica in replicas:
        torch.manual_seed(replica)
        models.append(Net())
    around = Lookaround(models, k=4, group=group)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    lent: list[dict[str, Any]] = []
    for iteration in range(1, 11):
        for replica, model, optimizer in zip(replicas, models, optimizers, strict=True):
            generator = torch.Generator().manual_seed(100 * replica + iteration)
            for _ in range(replica + 1):  # so that the replicas' integer counters differ
                output = model(torch.randn(4, 3, 5, 5, generator=generator))
            optimizer.zero_grad()
            F.mse_loss(output, torch.randn(4, 4, generator=generator)).backward()
            optimizer.step()
        around.step()
        if lending and iteration in (2, 7, 8, 10):
            lent.append(lend(around, models, raises=iteration == 7))
    before = [snapshot(model) for model in models]
    around.average()
    return [
        {"lent": [{key: value[j] for key, value in each.items()} for each in lent], "end": end, "averaged": averaged}
        for j, (end, averaged) in enumerate(zip(before, map(snapshot, models), strict=True))
    ]


def lend(around: Lookaround, models: list[Net], raises: bool) -> dict[str, list[State]]:
    before, during = [snapshot(model) for model in models], {}
    try:
        with around.averaged() as phi:
            assert phi is models[0]
            during = snapshot(phi)
            phi(torch.randn(4, 3, 5, 5))  # in train mode: changes statistics, counter and vector
            for parameter in phi.parameters():
                parameter.data.mul_(2)
            if raises:
                raise KeyError("of the evaluation")
    except KeyError:
        assert raises
    return {"before": before, "during": [during] * len(models), "after": [snapshot(model) for model in models]}


def scenarios(replicas: Sequence[int], group: dist.ProcessGroup | None) -> Three:
    return {
        "quiet": train(replicas, group, lending=False),
        "lending": train(replicas, group, lending=True),
    }


def worker(rank: int, ranks: int) -> Three:
    return scenarios([rank], None)


@pytest.fixture(scope="module")
def ranks() -> list[Three]:
    return run(worker, 3)


@pytest.fixture(scope="module", params=["hosted by one rank", "on three ranks"])
def three(request: pytest.FixtureRequest, ranks: list[Three]) -> Three:
    """scenario -> the results of three replicas."""
    if request.param == "hosted by one rank":
        return scenarios(range(3), None)
    return {name: [rank[name][0] for rank in ranks] for name in ranks[0]}


def test_phi_is_the_mean_of_the_replicas_with_the_local_buffers_of_the_first(three: Three) -> None:
    for each in range(4):
        before = [result["lent"][each]["before"] for result in three["lending"]]
        assert not same_bits(before[0]["vector"], before[1]["vector"])
        for result in three["lending"]:
            phi = result["lent"][each]["during"]
            assert sorted(phi) == sorted(AVERAGED + LOCAL)
            for name in AVERAGED:
                mean = (before[0][name].double() + before[1][name].double() + before[2][name].double()) / 3
                assert same_bits(phi[name], mean.float()), name
            assert all(same_bits(phi[name], before[0][name]) for name in LOCAL)


def test_lending_restores_every_replica_also_when_the_block_raises(three: Three) -> None:
    for result in three["lending"]:
        for lent in result["lent"]:
            assert same_state(lent["after"], lent["before"])


def test_phi_mid_round_is_no_replica(three: Three) -> None:
    """After iterations 2, 7 and 10 of k = 4 phi lies between the replicas; after 8 they are at phi already."""
    for result in three["lending"]:
        moved = [(lent["during"]["conv.weight"] - lent["before"]["conv.weight"]).abs().max() for lent in result["lent"]]
        assert moved[2] == 0
        assert min(moved[0], moved[1], moved[3]) > 1e-4


def test_lending_does_not_change_the_training(three: Three) -> None:
    for quiet, lending in zip(three["quiet"], three["lending"], strict=True):
        assert same_state(quiet["end"], lending["end"])
        assert same_state(quiet["averaged"], lending["averaged"])


def test_phi_has_the_bits_that_the_average_step_gives(three: Three) -> None:
    for result in three["lending"]:
        phi = result["lent"][3]["during"]
        assert all(same_bits(phi[name], result["averaged"][name]) for name in AVERAGED)


def test_integer_and_local_buffers_survive_the_average_step(three: Three) -> None:
    """Replica j makes j + 1 forward passes in each of 10 iterations."""
    for replica, result in enumerate(three["lending"]):
        assert result["averaged"]["norm.num_batches_tracked"] == 10 * (replica + 1)
        assert same_bits(result["averaged"]["vector"], result["end"]["vector"])


def test_lending_leaves_the_callers_grad_mode() -> None:
    with torch.no_grad(), Lookaround(Net()).averaged():
        assert not torch.is_grad_enabled()


def test_lending_lets_gradients_be_taken() -> None:
    with Lookaround(Net()).averaged():
        assert torch.is_grad_enabled()
