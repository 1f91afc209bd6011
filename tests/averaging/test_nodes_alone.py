"""Averages inside nodes of one process: what else asks for a mean, what is bad, converted, or does not go together."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lookaround_ddp import Lookaround, Nodes
from lookaround_ddp.averaging.nodes import neighbours
from tests.support.ranks import same_bits
from tests.support.waits import waits


def test_a_restart_forgets_what_was_bad() -> None:
    models = [nn.Linear(2, 2) for _ in range(4)]
    around = Lookaround(models, 1, nodes=Nodes(2, 2))
    models[2].weight.data[0] = torch.inf
    around.step()
    around.restart()
    assert around.step()
    assert same_bits(models[3].weight, models[0].weight)


def test_the_mean_that_is_lent_or_asked_for_is_over_all() -> None:
    models = [nn.Linear(2, 2) for _ in range(4)]
    around = Lookaround(models, 2, nodes=Nodes(2, 4))
    for value, model in enumerate(models):
        model.weight.data.fill_(value)
    around.step()
    around.step()
    assert [model.weight[0, 0].item() for model in models] == [0.5, 0.5, 2.5, 2.5]
    with around.averaged() as mean:
        assert mean.weight[0, 0].item() == 1.5
    assert [model.weight[0, 0].item() for model in models] == [0.5, 0.5, 2.5, 2.5]
    around.average()
    assert [model.weight[0, 0].item() for model in models] == [1.5] * 4


def test_the_host_of_a_gpu_waits_for_nothing() -> None:
    """Also where a replica is bad: its neighbours stay as they are."""
    models = [nn.Linear(2, 2) for _ in range(4)]
    around = Lookaround(models, 1, nodes=Nodes(2, 2))
    around._average.later = True
    for value, model in enumerate(models):
        model.weight.data.fill_(value)
    with waits() as found:
        around.step()
        around.step()
    assert found == []
    around.look()
    assert [model.weight[0, 0].item() for model in models] == [1.5] * 4
    for value, model in enumerate(models):
        model.weight.data.fill_(torch.inf if value == 2 else value)
    with waits() as found:
        around.step()
    assert found == []
    assert models[0].weight[0, 0].item() == 0.0  # they lie on one rank, all of them
    around.step()
    with pytest.raises(FloatingPointError, match="replica 2 not finite after iteration 4"):
        around.look()


def test_converted_models_wait_for_an_average_over_all() -> None:
    models = [nn.Linear(2, 2) for _ in range(4)]
    around = Lookaround(models, 1, nodes=Nodes(2, 2))
    for value, model in enumerate(models):
        model.double().weight.data.fill_(value)
    around.step()
    assert [model.weight[0, 0].item() for model in models] == [0, 1, 2, 3]
    around.step()
    assert [model.weight[0, 0].item() for model in models] == [1.5] * 4


@pytest.mark.parametrize(
    ("counts", "size", "sets"),
    [
        ([1] * 6, 2, [[0, 1], [2, 3], [4, 5]]),
        ([1] * 6, 3, [[0, 1, 2], [3, 4, 5]]),
        ([6], 2, [[0]]),
        ([2, 2, 2], 2, [[0], [1], [2]]),
        ([2, 2, 2], 3, [[0, 1, 2]]),  # the second rank hosts parts of both nodes
        ([2, 2, 1, 1], 3, [[0, 1, 2, 3]]),
        ([2, 2, 1, 1], 2, [[0], [1], [2, 3]]),
        ([2, 1, 1, 1, 1], 3, [[0, 1], [2, 3, 4]]),
    ],
)
def test_the_ranks_that_average_by_themselves(counts: list[int], size: int, sets: list[list[int]]) -> None:
    assert neighbours(counts, size) == sets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": Nodes(3, 10)}, "nodes.size is 3: give 2 or more, and such that it divides the 4 replicas"),
        ({"nodes": Nodes(4, 10)}, "nodes.size is 4: give 2 or more"),
        ({"nodes": Nodes(1, 10)}, "nodes.size is 1: give 2 or more"),
        ({"nodes": Nodes(2, 7)}, "nodes.k is 7: give a multiple of k = 5, such as 10"),
        ({"nodes": Nodes(2, 5)}, "nodes.k is 5: give a multiple of k = 5, such as 10"),
        ({"nodes": Nodes(2, 19)}, "nodes.k is 19: give a multiple of k = 5, such as 15"),
        (
            {"nodes": Nodes(2, 10), "k": lambda steps: 5},
            "nodes average over all after a multiple of k steps: give one k",
        ),
        ({"nodes": Nodes(2, 10), "k": None}, "nodes average among themselves when a round ends, and k=None has none"),
        ({"nodes": Nodes(2, 10), "delay": 1}, "nodes average when a round ends, not 1 steps later: use delay=0"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Lookaround([nn.Linear(2, 2) for _ in range(4)], **options)
