"""Replicas that train and stay the same, since something else averages them: a warning, once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lookaround_ddp import Lookaround
from tests.support.ranks import run

WARNING = (
    "all {} replicas have the same weights after step {}, before they are averaged: either something else averages "
    "their gradients (DDP: train the bare model instead; in Lightning, accelerate and Hugging Face's Trainer use "
    "lookaround_ddp.integrations), or they train on the same data with the same seeds; their mean is nothing new"
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1, dtype=torch.float64))


def forward(model: nn.Module, seed: int) -> torch.Tensor:
    hidden = model[1](model[0](torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))))
    return model[2](hidden.double())


class Whole(nn.Module):
    """The network, so that DDP has a forward pass of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, seed: int) -> torch.Tensor:
        return forward(self.model, seed)


def warned(replicas: list[int], *, steps: int = 4, lr: float = 0.1, ddp: bool = False, **options: Any) -> list[str]:
    """The warnings of some steps, k = 2; replica j sees batch j of each."""
    models = [network() for _ in replicas]
    resumed = options.pop("resumed", False)
    around = Lookaround(models, k=2, **options)
    if resumed:
        for model in models:
            nn.init.ones_(model[0].weight)
        around.load_state_dict({"steps": 10, "distances": None})
    optimizers = [torch.optim.SGD(model.parameters(), lr=lr) for model in models]
    trained = [DistributedDataParallel(Whole(model)) if ddp else Whole(model) for model in models]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if resumed:
            around.average()
        for step in range(steps):
            for replica, model, optimizer in zip(replicas, trained, optimizers, strict=True):
                optimizer.zero_grad()
                model(100 * step + replica).square().sum().backward()
                optimizer.step()
            with around.averaged():  # compares nothing: an evaluation may follow weights that were loaded
                pass
            around.step()
    return [str(each.message) for each in caught if issubclass(each.category, UserWarning)]


def worker(rank: int, ranks: int) -> dict[str, list[str]]:
    return {
        "bare": warned([rank]),
        "DDP": warned([rank], ddp=True),
        "DDP, delayed": warned([rank], ddp=True, delay=1),
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, list[str]]]:
    return run(worker, 2)


@pytest.mark.parametrize("how", ["DDP", "DDP, delayed"])
def test_gradients_that_ddp_averages_are_told_once(ranks: list[dict[str, list[str]]], how: str) -> None:
    """By one rank; the running statistics, which differ, hide nothing."""
    assert [rank[how] for rank in ranks] == [[WARNING.format(2, 2)], []]


def test_replicas_that_train_apart_are_not_warned_of(ranks: list[dict[str, list[str]]]) -> None:
    assert [rank["bare"] for rank in ranks] == [[], []]
    assert warned([0, 1, 2]) == []
    assert warned([0, 0, 1]) == []


def test_the_same_data_are_told_once() -> None:
    assert warned([5, 5, 5]) == [WARNING.format(3, 2)]


def test_replicas_that_have_not_trained_or_were_loaded_are_not_warned_of() -> None:
    assert warned([5, 5], lr=0.0) == []
    assert warned([5, 5], resumed=True) == []
    assert warned([5]) == []


def test_where_the_host_does_not_wait_it_is_told_when_it_looks() -> None:
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    around = Lookaround(models, k=1)
    around._average.later = True
    for model in models:
        nn.init.constant_(model.weight, 3.0)
    around.step()
    with pytest.warns(UserWarning, match="^all 2 replicas have the same weights after step 1, "):
        around.look()
