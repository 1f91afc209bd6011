"""Optimizer state, distances, non-finite replicas, shards, the count: against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from tests.support.ranks import run, same_state
from tests.support.trainings import Weights, fill

State = dict[str, Tensor]


def snapshot(model: nn.Module) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def optimizer_state(replicas: Sequence[int], group: dist.ProcessGroup | None, how: str, adam: bool) -> list[Any]:
    """Two iterations with the gradient j + 1 in replica j, the average step, one more iteration."""
    models = [Weights() for _ in replicas]
    make = partial(torch.optim.AdamW, lr=0.1) if adam else partial(torch.optim.SGD, lr=1.0, momentum=0.5)
    optimizers = [make(model.parameters()) for model in models]
    around = Lookaround(models, k=2, group=group, optimizers=optimizers, optimizer_state=how)
    results: list[Any] = [{} for _ in replicas]
    for iteration in (1, 2, 3):
        for replica, model, optimizer in zip(replicas, models, optimizers, strict=True):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, replica + 1)
            optimizer.step()
        around.step()
        for model, optimizer, result in zip(models, optimizers, results, strict=True):
            state = {key: value.clone() for key, value in optimizer.state.get(model.w, {}).items()}
            result[iteration] = {"w": model.w.detach().clone(), "v": model.v.detach().clone(), "state": state}
    return results


def distances(replicas: Sequence[int], group: dist.ProcessGroup | None) -> list[Any]:
    """Replica j has w = (3j, 4j), v = 12j and buffers that must not count."""
    models = [Weights() for _ in replicas]
    around = Lookaround(models, k=1, group=group, measure=True)
    unmeasured = Lookaround(models, k=1, group=group)
    first = around.distances
    for replica, model in zip(replicas, models, strict=True):
        fill(model, 1000.0 * replica)
        model.w.data.copy_(torch.tensor([3.0, 4.0]) * replica)
        model.v.data.fill_(12.0 * replica)
    with around.averaged():
        lent = around.distances
    around.step()
    unmeasured.step()
    now = around.distances
    around.measure = False
    around.step()
    resumed = Lookaround(models, k=1, group=group)
    resumed.load_state_dict(json.loads(json.dumps(around.state_dict())))
    return [{"first": first, "lent": lent, "now": now, "kept": resumed.distances, "off": unmeasured.distances}] * len(
        replicas
    )


def not_finite(replicas: Sequence[int], group: dist.ProcessGroup | None) -> list[Any]:
    """Replica j holds j everywhere, but for one element. Returns messages, and whether a bit changed."""
    cases = {
        "w 1": ("w", [1], math.nan),
        "v 0, 2": ("v", [0, 2], math.inf),
        "running_mean 2": ("running_mean", [2], -math.inf),
    }
    results: list[Any] = [{} for _ in replicas]
    for name, (key, bad, value) in cases.items():
        models = [Weights() for _ in replicas]
        around = Lookaround(models, k=3, group=group)
        for replica, model in zip(replicas, models, strict=True):
            fill(model, replica)
            if replica in bad:
                model.state_dict()[key].view(-1)[0] = value
        before = [snapshot(model) for model in models]
        messages = [message_of(around.step) for _ in range(3)]
        messages.append(message_of(around.averaged().__enter__))
        for result, model, state in zip(results, models, before, strict=True):
            result[name] = {"messages": messages, "untouched": same_state(snapshot(model), state)}
    return results


def message_of(call: Any) -> str:
    try:
        call()
    except FloatingPointError as error:
        return str(error)
    return ""


def scenarios(replicas: Sequence[int], group: dist.ProcessGroup | None) -> dict[str, list[Any]]:
    return {
        **{how: optimizer_state(replicas, group, how, adam=False) for how in ("local", "average", "reset")},
        "AdamW average": optimizer_state(replicas, group, "average", adam=True),
        "distances": distances(replicas, group),
        "not finite": not_finite(replicas, group),
    }


def shards(rank: int) -> State:
    """2 replicas x 2 shards. A replica's weights are equal in its shards, as DDP keeps them; its buffers are not."""
    pairs = {"shards": [[0, 1], [2, 3]], "group": [[0, 2], [1, 3]]}
    groups = {name: [dist.new_group(ranks) for ranks in lists] for name, lists in pairs.items()}
    model = Weights()
    mine = {"shards": groups["shards"][rank // 2], "group": groups["group"][rank % 2]}
    around = Lookaround(model, k=1, **mine)
    fill(model, rank + 1)
    for parameter in model.parameters():
        parameter.data.fill_(2.0 if rank < 2 else 5.0)
    with around.averaged() as phi:
        lent = snapshot(phi)
    assert around.replicas == 2
    assert around.step()
    return {**snapshot(model), **{f"lent {name}": value for name, value in lent.items()}}


def worker(rank: int, ranks: int) -> dict[str, Any]:
    trio = dist.new_group([0, 1, 2])
    return {"shards": shards(rank), "trio": scenarios([rank], trio) if rank < 3 else {}}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 4)


@pytest.fixture(scope="module", params=["hosted by one rank", "on three ranks"])
def three(request: pytest.FixtureRequest, ranks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """scenario -> the results of three replicas."""
    if request.param == "hosted by one rank":
        return scenarios(range(3), None)
    return {name: [rank["trio"][name][0] for rank in ranks[:3]] for name in ranks[0]["trio"]}


Three = dict[str, list[Any]]
# Gradient g = j + 1, learning rate 1, momentum 0.5: the buffer is g, then 1.5 g; w is -g, then -2.5 g, mean -5.
# In the third iteration the buffer is half of what the average step left, plus g, and w is -5 minus that.
SGD = {
    "local": ([1.5, 3.0, 4.5], [-6.75, -8.5, -10.25]),
    "average": ([3.0, 3.0, 3.0], [-7.5, -8.5, -9.5]),
    "reset": ([None, None, None], [-6.0, -7.0, -8.0]),
}


@pytest.mark.parametrize("how", SGD)
def test_momentum_after_the_average_step(three: Three, how: str) -> None:
    buffers, weights = SGD[how]
    for result, buffer, weight in zip(three[how], buffers, weights, strict=True):
        assert result[2]["w"].tolist() == [-5.0, -5.0]
        assert result[2]["v"].item() == -5.0
        assert (
            result[2]["state"] == {}
            if buffer is None
            else result[2]["state"]["momentum_buffer"].tolist() == [buffer] * 2
        )
        assert result[3]["w"].tolist() == [weight] * 2
        assert result[3]["v"].item() == weight


def test_averaged_adamw_state(three: Three) -> None:
    """exp_avg is (1 - 0.9^2) g = 0.19 g, exp_avg_sq (1 - 0.999^2) g^2; the means of g and g^2 are 2 and 14 / 3."""
    for result in three["AdamW average"]:
        state = result[2]["state"]
        torch.testing.assert_close(state["exp_avg"], torch.full((2,), 0.38), rtol=1e-6, atol=0)
        torch.testing.assert_close(state["exp_avg_sq"], torch.full((2,), 0.001999 * 14 / 3), rtol=1e-4, atol=0)
        assert [result[i]["state"]["step"].item() for i in (1, 2, 3)] == [1, 2, 3]


def test_distances_to_the_mean(three: Three) -> None:
    """The mean is w = (3, 4), v = 12; replicas 0 and 2 are sqrt(9 + 16 + 144) = 13 away, replica 1 is 0."""
    for result in three["distances"]:
        assert result["first"] is None
        assert result["lent"] is None
        assert result["now"].tolist() == [13.0, 0.0, 13.0]
        assert result["kept"].tolist() == [13.0, 0.0, 13.0]  # the average after it measured nothing
        assert result["off"] is None


@pytest.mark.parametrize(
    ("name", "which"),
    [("w 1", "replica 1"), ("v 0, 2", "replicas 0, 2"), ("running_mean 2", "replica 2")],
)
def test_a_replica_that_is_not_finite_stops_all_before_a_weight_is_touched(three: Three, name: str, which: str) -> None:
    for result in three["not finite"]:
        first, second, third, lent = result[name]["messages"]
        assert (first, second) == ("", "")
        assert third.startswith(f"{which} not finite after iteration 3: ")
        assert lent == third
        assert result[name]["untouched"]


def test_shards_of_a_replica_have_the_buffers_of_its_first(ranks: list[dict[str, Any]]) -> None:
    """Weights 2 and 5, mean 3.5; ranks hold 1, 2, 3, 4 as buffers, so the replicas have 1 and 3, mean 2."""
    for rank, result in enumerate(ranks):
        own = [1, 1, 3, 3][rank]
        assert result["shards"]["w"].tolist() == [3.5, 3.5]
        assert result["shards"]["v"].item() == 3.5
        assert result["shards"]["running_mean"].tolist() == [2, 2]
        assert result["shards"]["vector"].tolist() == [own, own]
        assert result["shards"]["count"].item() == own


def test_shards_lend_one_mean_model(ranks: list[dict[str, Any]]) -> None:
    """With the local buffers of replica 0's first shard on all four ranks."""
    for result in ranks:
        lent = [result["shards"][f"lent {name}"].flatten()[0] for name in ("w", "v", "running_mean", "vector", "count")]
        assert lent == [3.5, 3.5, 2, 1, 1]
