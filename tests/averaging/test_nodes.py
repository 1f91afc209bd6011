"""Averages inside nodes: plain loops, every placement, resumed, and what one node hears of another."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround, Nodes, Outer
from lookaround_ddp.averaging import collectives, shared_memory
from lookaround_ddp.averaging.nodes import neighbours
from tests.support.ranks import run, same_bits, same_state
from tests.support.trainings import Conv, square_loss

D, START, K, STEPS = 4, 1, 2, 15
NODES = Nodes(size=2, k=6)
INSIDE, OVER_ALL = (3, 5, 9, 11, 15), (7, 13)  # the steps that an average follows
KINDS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "states averaged": {"optimizer_state": "average"},
    "states reset": {"optimizer_state": "reset"},
    "outer": {"outer": Outer(0.5, 0.8)},
}
# Of each rank the replicas: nodes on a rank each, on two, on ranks of one to three; and cut by ranks.
PLACEMENTS = ([2, 2], [1, 1, 1, 1], [2, 1, 1], [3, 1], [1, 2, 1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(
    hosted: Sequence[int], kind: str = "as it comes", nodes: Nodes = NODES, stops: Iterable[int] = (), **options: Any
) -> list[dict[str, Tensor]]:
    """With Lookaround; after each of the stops all goes on from what was saved, in new objects."""
    options |= KINDS[kind]
    torch.manual_seed(1)
    models = [Conv() for _ in hosted]
    optimizers = [sgd(model) for model in models]
    around = Lookaround(models, K, start=START, nodes=nodes, optimizers=optimizers, **options)
    for step in range(1, STEPS + 1):
        for replica, model, optimizer in zip(hosted, models, optimizers, strict=True):
            optimizer.zero_grad()
            square_loss(model, replica, step).backward()
            optimizer.step()
        assert around.step() == (step in (*INSIDE, *OVER_ALL)) == around.due(step)
        assert around.due_over_all(step) == (step in OVER_ALL)
        if step in stops:
            saved = copy.deepcopy([(m.state_dict(), o.state_dict()) for m, o in zip(models, optimizers, strict=True)])
            count = around.state_dict()
            models = [Conv() for _ in hosted]
            optimizers = [sgd(model) for model in models]
            around = Lookaround(models, K, start=START, nodes=nodes, optimizers=optimizers, **options)
            for (weights, momentum), model, optimizer in zip(saved, models, optimizers, strict=True):
                model.load_state_dict(weights)
                optimizer.load_state_dict(momentum)
            around.load_state_dict(count)
    return [{name: value.clone() for name, value in model.state_dict().items()} for model in models]


def plain(kind: str) -> list[dict[str, Tensor]]:
    """Loops without this package."""
    torch.manual_seed(1)
    replicas = [Conv() for _ in range(D)]
    for replica in replicas[1:]:
        replica.load_state_dict(replicas[0].state_dict())
    optimizers, phi, outside = [sgd(model) for model in replicas], None, None
    for step in range(1, STEPS + 1):
        for j, (model, optimizer) in enumerate(zip(replicas, optimizers, strict=True)):
            optimizer.zero_grad()
            square_loss(model, j, step).backward()
            optimizer.step()
        teams = [[0, 1], [2, 3]] if step in INSIDE else [[0, 1, 2, 3]] if step in OVER_ALL else []
        for team in teams:
            average([replicas[j] for j in team])
            if kind == "states averaged":
                for states in zip(*(optimizers[j].state.values() for j in team), strict=True):
                    mean_of([state["momentum_buffer"] for state in states])
            if kind == "states reset":
                for j in team:
                    optimizers[j].state.clear()
        if step in OVER_ALL and kind == "outer":
            if phi is None:
                phi = copy.deepcopy(replicas[0])  # the first mean
                outside = torch.optim.SGD(phi.parameters(), lr=0.5, momentum=0.8, nesterov=True)
                continue
            for parameter, mean in zip(phi.parameters(), replicas[0].parameters(), strict=True):
                parameter.grad = parameter.detach() - mean.detach()
            outside.step()
            for model in replicas:
                for parameter, moved in zip(model.parameters(), phi.parameters(), strict=True):
                    parameter.data.copy_(moved)
    return [model.state_dict() for model in replicas]


def average(models: Sequence[nn.Module]) -> None:
    states = [model.state_dict() for model in models]
    for name in states[0]:
        if not name.endswith("tracked"):
            mean_of([state[name] for state in states])


def mean_of(values: Sequence[Tensor]) -> None:
    mean = torch.stack([value.double() for value in values]).mean(0)
    for value in values:
        value.copy_(mean)


def worker(rank: int, ranks: int) -> dict[str, Any]:
    machine = shared_memory._machine
    collectives.PIECE_BYTES["cpu"] = 256  # several pieces
    results: dict[str, Any] = {}
    for counts in PLACEMENTS:
        group = dist.new_group(range(len(counts)))
        sets = neighbours(counts, NODES.size)
        inside = {each: dist.new_group(each) for each in map(tuple, sets) if len(each) > 1}
        if rank >= len(counts):
            continue
        own = next((made for each, made in inside.items() if rank in each), None)
        hosted = range(sum(counts[:rank]), sum(counts[: rank + 1]))
        for how in ("shared", "collectives"):
            shared_memory._machine = machine if how == "shared" else lambda: None
            for kind in KINDS:
                results[f"{counts}, {how}, {kind}"] = train(hosted, kind, group=group, inside=own)
            results[f"{counts}, {how}, inexact"] = train(hosted, group=group, inside=own, exact=False)
            results[f"{counts}, {how}, resumed"] = train(hosted, stops=(2, 3, 9), group=group, inside=own)
        shared_memory._machine = machine
    results["eight"] = train([rank], nodes=Nodes(4, 6))  # on all ranks, so that Lookaround makes the groups
    four, three = dist.new_group(range(4)), dist.new_group(range(3))
    if rank < 4:  # sets of 3 ranks and of 1, of 4 together
        shared_memory._machine = lambda: None
        hosted = range(3, 6) if rank == 3 else [rank]
        results["six"] = train(hosted, nodes=Nodes(3, 6), group=four, inside=three if rank < 3 else None)
        shared_memory._machine = machine
    columns = [dist.new_group(range(shard, 8, 2)) for shard in (0, 1)]
    shards = [dist.new_group([2 * j, 2 * j + 1]) for j in range(D)]
    pairs = [dist.new_group([4 * node + shard, 4 * node + shard + 2]) for node in (0, 1) for shard in (0, 1)]
    groups = {"group": columns[rank % 2], "shards": shards[rank // 2], "inside": pairs[2 * (rank // 4) + rank % 2]}
    results["sharded"] = train([rank // 2], **groups)
    results["alone"] = alone(rank)
    return results


def alone(rank: int) -> list[Any]:
    """Ranks 0 and 1 average while the others are elsewhere; replica 3 is bad meanwhile, and then no more."""
    group = dist.new_group(range(D))
    inside = [dist.new_group(each) for each in ([0, 1], [2, 3])]
    seen: list[Any] = []
    if rank < D:
        model = nn.Linear(2, 2)
        around = Lookaround(model, 1, nodes=Nodes(2, 2), measure=True, group=group, inside=inside[rank // 2])
        model.weight.data.fill_(rank)
        model.bias.data.fill_(torch.nan if rank == 3 else 0.0)
        if rank >= 2:
            dist.barrier()
        around.step()
        if rank < 2:
            dist.barrier()
        seen += [model.weight.detach().clone(), around.distances is None]
        model.bias.data.fill_(0.0)
        for _ in range(2):
            try:
                around.step()
            except FloatingPointError as error:
                seen.append(str(error))
        around.step()
        seen += [model.weight.detach().clone(), around.distances]
    else:
        dist.barrier()
    return seen


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 8)


@cache
def hosted_by_one(kind: str = "as it comes") -> list[dict[str, Tensor]]:
    return train(range(D), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_replica_is_where_plain_loops_put_it(kind: str) -> None:
    """Within 1e-6 of the oracle, whose schedules are further apart."""
    for state, expected in zip(hosted_by_one(kind), plain(kind), strict=True):
        torch.testing.assert_close(state, dict(expected), rtol=0, atol=2e-6)
    if kind != "as it comes":
        assert (hosted_by_one(kind)[0]["conv.weight"] - hosted_by_one()[0]["conv.weight"]).abs().max() > 1e-4
    first, second, third, fourth = hosted_by_one(kind)  # the last average was one inside nodes
    assert same_bits(first["conv.weight"], second["conv.weight"])
    assert same_bits(third["norm.running_var"], fourth["norm.running_var"])
    assert (first["conv.weight"] - third["conv.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [*KINDS, "resumed"])
@pytest.mark.parametrize("counts", PLACEMENTS, ids=str)
def test_placement_changes_no_bit(ranks: list[dict[str, Any]], counts: list[int], kind: str) -> None:
    expected = hosted_by_one("as it comes" if kind == "resumed" else kind)
    for how in ("shared", "collectives"):
        placed = [state for each in ranks for state in each.get(f"{counts}, {how}, {kind}", [])]
        assert len(placed) == D
        assert all(same_state(one, other) for one, other in zip(placed, expected, strict=True))


@pytest.mark.parametrize("counts", PLACEMENTS, ids=str)
def test_inexact_means(ranks: list[dict[str, Any]], counts: list[int]) -> None:
    for how in ("shared", "collectives"):
        placed = [state for each in ranks for state in each.get(f"{counts}, {how}, inexact", [])]
        for one, other in zip(placed, hosted_by_one(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_shards_of_a_replica_average_with_those_of_its_node(ranks: list[dict[str, Any]]) -> None:
    for rank, each in enumerate(ranks):
        assert same_state(each["sharded"][0], hosted_by_one()[rank // 2])


def test_groups_are_made_where_the_replicas_are_on_all_processes(ranks: list[dict[str, Any]]) -> None:
    for each, expected in zip(ranks, train(range(8), nodes=Nodes(4, 6)), strict=True):
        assert same_state(each["eight"][0], expected)


def test_sets_of_ranks_of_which_the_number_is_no_multiple(ranks: list[dict[str, Any]]) -> None:
    placed = [state for each in ranks[:4] for state in each["six"]]
    assert len(placed) == 6
    assert all(same_state(a, b) for a, b in zip(placed, train(range(6), nodes=Nodes(3, 6)), strict=True))


def test_a_node_waits_for_no_other_and_all_are_told_of_what_was_bad(ranks: list[dict[str, Any]]) -> None:
    """Replicas 0 and 1 become 1/2, 2 and 3 stay. Step 2 is refused; step 3 makes 1/2 and 5/2, step 4 the mean, 3/2."""
    for rank, each in enumerate(ranks[:D]):
        weight, unmeasured, error, last, distances = each["alone"]
        assert weight.flatten().tolist() == [[0.5, 0.5, 2.0, 3.0][rank]] * 4
        assert unmeasured
        assert error.startswith("replica 3 not finite after iteration 2: ")
        assert last.flatten().tolist() == [1.5] * 4
        assert distances.tolist() == [2.0] * 4  # 1 from the mean in 4 elements
