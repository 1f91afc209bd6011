"""An outer optimizer: by hand, against torch.optim.SGD on phi, in every placement, and resumed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround, Outer
from lookaround_ddp.averaging import outer as outer_module
from lookaround_ddp.averaging import shared_memory
from tests.support.ranks import run, same_state
from tests.support.trainings import Conv, square_loss

D, K, STEPS = 3, 2, 8  # three replicas, four rounds
DILOCO = Outer()  # lr 0.7, momentum 0.9, nesterov
KINDS = {"nesterov": DILOCO, "momentum": Outer(0.5, 0.8, nesterov=False), "no momentum": Outer(0.6, 0.0)}


class Moving(nn.Module):
    """Weights that a test moves by hand, a frozen one, complex and narrow ones, and running statistics."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((3, 2), value))
        self.frozen = nn.Parameter(torch.full((5,), 0.3), requires_grad=False)
        self.wide = nn.Parameter(torch.full((2,), value, dtype=torch.float64))
        self.narrow = nn.Parameter(torch.full((2,), value, dtype=torch.bfloat16))
        self.waves = nn.Parameter(torch.full((2, 2), complex(value, -value)))
        self.register_buffer("running_mean", torch.full((2,), value))

    def move(self, by: float) -> None:
        with torch.no_grad():
            for tensor in (self.w, self.wide, self.narrow, self.running_mean):
                tensor += by
            self.waves += complex(by, -by)

    def values(self) -> list[float]:
        """What all weights that move have in common."""
        found = {*self.w.flatten().tolist(), *self.wide.tolist(), *self.narrow.tolist()}
        found |= {z.real for z in self.waves.flatten().tolist()} | {-z.imag for z in self.waves.flatten().tolist()}
        assert torch.equal(self.frozen, torch.full((5,), 0.3))
        return sorted(found)


# The mean moves from phi by -1 in each round, so the gradient is 1. Momentum 0.5 and lr 0.5; v is 1, 1.5, 1.75.
# With nesterov phi moves by half of 1 + 0.5 v: 1.5, 1.75, 1.875; without it by half of v.
BY_HAND = {
    Outer(0.5, 0.5): [-0.75, -1.625, -2.5625],
    Outer(0.5, 0.5, nesterov=False): [-0.5, -1.25, -2.125],
    Outer(0.5, 0.0): [-0.5, -1.0, -1.5],
    Outer(1.0, 0.0): [-1.0, -2.0, -3.0],
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("outer", BY_HAND, ids=str)
def test_three_rounds_by_hand(outer: Outer, exact: bool) -> None:
    """Replica 0 moves by -1/4 a step, replica 1 by -3/4: their mean by -1 in two steps. Statistics do just that."""
    models = [Moving(), Moving()]
    around = Lookaround(models, k=2, outer=outer, exact=exact, measure=True)
    for number, phi in enumerate(BY_HAND[outer], start=1):
        for _ in range(2):
            models[0].move(-0.25)
            models[1].move(-0.75)
            around.step()
        for model in models:
            assert model.values() == [phi]
            assert model.running_mean.tolist() == [-number] * 2
        assert around.distances is not None  # to the mean: half of 6 + 2 + 2 weights, and of 4 with two parts
        assert around.distances.tolist() == pytest.approx([0.5 * 18**0.5] * 2)


def test_it_begins_with_the_first_mean_after_a_start_and_anew_with_a_restart() -> None:
    outer = Outer(0.5, 0.5, nesterov=False)
    models = [Moving(), Moving()]
    around = Lookaround(models, k=1, start=1, outer=outer)
    seen = []
    for _ in range(4):
        models[0].move(-0.5)
        models[1].move(-1.5)
        around.step()
        seen.append(models[0].values())
    # apart until step 2, whose mean is -2; then the gradients are 1 and v is 1, 1.5
    assert seen == [[-0.5], [-2.0], [-2.5], [-3.25]]
    models[1].move(10.0)
    around.restart()
    for model in models:
        model.move(-1.0)
    around.step()
    assert models[1].values() == [-3.75]  # -3.25 - 0.5 * 1: v is forgotten


def test_other_means_are_plain_and_leave_the_round_alone() -> None:
    """phi = 0; replicas at -1 and -3 are averaged by hand, and move to -3 each: the gradient is 3."""
    models = [Moving(), Moving()]
    around = Lookaround(models, k=2, outer=Outer(0.5, 0.0))
    models[0].move(-1.0)
    models[1].move(-3.0)
    with around.averaged() as mean:
        assert mean.values() == [-2.0]
    around.step()
    around.average()
    assert [model.values() for model in models] == [[-2.0], [-2.0]]
    for model in models:
        model.move(-1.0)
    around.step()
    assert [model.values() for model in models] == [[-1.5], [-1.5]]
    around.average()  # as a training ends: phi is the mean
    assert [model.values() for model in models] == [[-1.5], [-1.5]]


def train(hosted: Sequence[int], outer: Outer | None, stops: Sequence[int] = (), **options: Any) -> list[Any]:
    """With Lookaround; after each of the stops all goes on from what was saved, in new objects."""
    torch.manual_seed(1)
    models = [Conv() for _ in hosted]
    around = Lookaround(models, k=K, outer=outer, **options)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for step in range(1, STEPS + 1):
        for replica, model, optimizer in zip(hosted, models, optimizers, strict=True):
            optimizer.zero_grad()
            square_loss(model, replica, step).backward()
            optimizer.step()
        around.step()
        if step in stops:
            saved = copy.deepcopy([model.state_dict() for model in models])
            count, state = around.state_dict(), copy.deepcopy(around.outer.state_dict())
            models = [Conv() for _ in hosted]
            around = Lookaround(models, k=K, outer=outer, **options)
            for model, weights in zip(models, saved, strict=True):
                model.load_state_dict(weights)
            around.outer.load_state_dict(state)
            around.load_state_dict(count)
            momenta = [optimizer.state_dict() for optimizer in optimizers]
            optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
            for optimizer, momentum in zip(optimizers, momenta, strict=True):
                optimizer.load_state_dict(momentum)
    return [{name: value.clone() for name, value in model.state_dict().items()} for model in models]


def plain(outer: Outer) -> dict[str, Tensor]:
    """Loops without this package: the outer optimizer is torch.optim.SGD."""
    torch.manual_seed(1)
    phi = Conv()
    replicas = [copy.deepcopy(phi) for _ in range(D)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in replicas]
    nesterov = outer.nesterov and outer.momentum > 0
    outside = torch.optim.SGD(phi.parameters(), lr=outer.lr, momentum=outer.momentum, nesterov=nesterov)
    for step in range(1, STEPS + 1):
        for j, (model, optimizer) in enumerate(zip(replicas, optimizers, strict=True)):
            optimizer.zero_grad()
            square_loss(model, j, step).backward()
            optimizer.step()
        if step % K == 0:
            with torch.no_grad():
                for parameter, *own in zip(phi.parameters(), *(each.parameters() for each in replicas), strict=True):
                    parameter.grad = parameter - torch.stack([p.double() for p in own]).mean(0).float()
                outside.step()
                for name in ("running_mean", "running_var"):
                    values = [getattr(each.norm, name) for each in replicas]
                    getattr(phi.norm, name).copy_(torch.stack([v.double() for v in values]).mean(0))
            phi.norm.num_batches_tracked.fill_(step)
            for model in replicas:
                model.load_state_dict(phi.state_dict())
    return phi.state_dict()


def worker(rank: int, ranks: int) -> dict[str, Any]:
    outer_module.BLOCK_ELEMENTS = 24  # several blocks
    trio, pair = dist.new_group([0, 1, 2]), dist.new_group([0, 1])
    columns = [dist.new_group(each) for each in ([0, 2], [1, 3])]
    shards = [dist.new_group(each) for each in ([0, 1], [2, 3])]
    results: dict[str, Any] = {}
    machine = shared_memory._machine
    for how in ("shared", "collectives"):
        shared_memory._machine = machine if how == "shared" else lambda: None
        for name, outer in KINDS.items():
            if rank < 3:
                results[f"{name}, {how}, on 3"] = train([rank], outer, group=trio)
            if rank < 2:
                results[f"{name}, {how}, on 2"] = train([[0, 1], [2]][rank], outer, group=pair)
        if rank < 3:
            results[f"resumed, {how}"] = train([rank], DILOCO, (3, 4, 7), group=trio)
        groups = {"group": columns[rank % 2], "shards": shards[rank // 2]}
        results[f"two, sharded, {how}"] = train([rank // 2], DILOCO, **groups)
    if rank < 2:
        results["two"] = train([rank], DILOCO, group=pair)
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 4)


@pytest.mark.parametrize("name", KINDS)
def test_phi_is_where_torch_puts_it_and_no_placement_changes_a_bit(ranks: list[dict[str, Any]], name: str) -> None:
    alone, expected = train(range(D), KINDS[name]), plain(KINDS[name])
    for state in alone:
        torch.testing.assert_close(state, dict(expected), rtol=0, atol=2e-6)
    for how in ("shared", "collectives"):
        for count in (2, 3):
            placed = [state for each in ranks for state in each.get(f"{name}, {how}, on {count}", [])]
            assert len(placed) == D
            assert all(same_state(one, other) for one, other in zip(placed, alone, strict=True))
    with_mean = train(range(D), None)
    assert (with_mean[0]["conv.weight"] - alone[0]["conv.weight"]).abs().max() > 1e-3


def test_shards_of_a_replica_move_with_it(ranks: list[dict[str, Any]]) -> None:
    for how in ("shared", "collectives"):
        for rank, each in enumerate(ranks):
            assert same_state(each[f"two, sharded, {how}"][0], ranks[rank // 2]["two"][0])


def test_it_goes_on_bit_for_bit_from_what_was_saved(ranks: list[dict[str, Any]]) -> None:
    """Inside a round, and after one."""
    undisturbed = train(range(D), DILOCO)
    assert all(same_state(a, b) for a, b in zip(train(range(D), DILOCO, (1, 4, 5)), undisturbed, strict=True))
    for how in ("shared", "collectives"):
        resumed = [each[f"resumed, {how}"][0] for each in ranks[:3]]
        assert all(same_state(one, other) for one, other in zip(resumed, undisturbed, strict=True))


def test_without_its_state_it_begins_with_the_next_mean() -> None:
    """And not from the weights that the models were made with."""
    models = [Moving(), Moving()]
    around = Lookaround(models, k=1, outer=Outer(0.5, 0.0))
    for model in models:
        model.move(8.0)
    around.load_state_dict({"steps": 3, "distances": None})
    around.step()
    assert models[0].values() == [8.0]
    models[0].move(2.0)
    around.step()
    assert models[1].values() == [8.5]


def test_lr_1_without_momentum_is_lookaround() -> None:
    assert all(
        same_state(one, other)
        for nesterov in (True, False)
        for one, other in zip(train(range(D), Outer(1.0, 0.0, nesterov)), train(range(D), None), strict=True)
    )
