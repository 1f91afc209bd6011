"""Training with `Lookaround` is Algorithm 1 of the paper: against plain loops that share no code with it."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from tests.support.ranks import run, same_bits
from tests.support.trainings import CASES, Case, Dense, build, loss_of

pytestmark = pytest.mark.quick

PLACEMENTS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 3)]  # replicas d, ranks: all hosted by one, or one on each


def train(case: Case, hosted: range, group: dist.ProcessGroup | None, **options: Any) -> list[dict[str, Any]]:
    """With Lookaround. Each replica is built from another seed: that they start from the first is its work."""
    make = partial(Lookaround, k=case.k, start=case.start, buffers=case.buffers, group=group, **options)
    models = [build(case, seed=replica) for replica in hosted]
    optimizers = [case.optimizer(model) for model in models]
    around = make(models if len(models) > 1 else models[0])
    averaged = []
    for iteration in range(1, case.iterations + 1):
        for replica, model, optimizer in zip(hosted, models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, replica, iteration).backward()
            if (replica, iteration) not in case.skipped:
                optimizer.step()
        averaged.append(around.step())
        if iteration == case.resumed_after:
            count, weights = around.state_dict(), [copy.deepcopy(model.state_dict()) for model in models]
            around = make(models)  # starts all replicas from the first, so their weights are loaded after
            for model, saved in zip(models, weights, strict=True):
                model.load_state_dict(saved)
            around.load_state_dict(count)
    if case.at_end:
        around.average()
    return [
        {
            "state": {name: value.clone() for name, value in model.state_dict().items()},
            "averaged": averaged,
            "steps": around.steps,
            "tied": model.encode.weight is model.decode.weight if isinstance(model, Dense) else True,
            "channels_last": all(p.is_contiguous(memory_format=torch.channels_last) for p in images(model)),
        }
        for model in models
    ]


def images(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.dim() == 4]


@cache
def algorithm_1(case: Case, d: int) -> list[dict[str, Tensor]]:
    """The paper's loop, with a mean of its own: over parameters, running statistics and the named buffers."""
    start = build(case, seed=0)
    replicas = [copy.deepcopy(start) for _ in range(d)]
    optimizers = [case.optimizer(replica) for replica in replicas]
    names = [name for name, _ in start.named_parameters()] + list(case.buffers)
    names += [name for name, _ in start.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for iteration in range(1, case.iterations + 1):
        for j in range(d):
            optimizers[j].zero_grad()
            loss_of(replicas[j], j, iteration).backward()
            if (j, iteration) not in case.skipped:
                optimizers[j].step()
        if iteration in case.averages:
            states = [replica.state_dict() for replica in replicas]
            for name in names:
                mean = torch.stack([state[name].double() for state in states]).mean(0)
                for state in states:
                    state[name].copy_(mean)
    return [replica.state_dict() for replica in replicas]


def worker(rank: int, ranks: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Two replicas on the first two ranks, then three on all (the default group)."""
    pair, one = dist.new_group([0, 1]), range(rank, rank + 1)
    return {
        "2": {name: train(case, one, pair) for name, case in CASES.items()} if rank < 2 else {},
        "3": {name: train(case, one, None) for name, case in CASES.items()},
    }


@pytest.fixture(scope="module")
def trained() -> dict[tuple[int, int], dict[str, list[dict[str, Any]]]]:
    """(replicas, ranks) -> case -> what each replica came to."""
    ranks = run(worker, 3)
    results = {(d, 1): {name: train(case, range(d), None) for name, case in CASES.items()} for d in (1, 2, 3)}
    for d in (2, 3):
        results[d, d] = {name: [ranks[j][str(d)][name][0] for j in range(d)] for name in CASES}
    return results


Trained = dict[tuple[int, int], dict[str, list[dict[str, Any]]]]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{} on {}".format(*p))
@pytest.mark.parametrize("name", CASES)
def test_every_replica_is_where_algorithm_1_puts_it(trained: Trained, name: str, placement: tuple[int, int]) -> None:
    results, expected = trained[placement][name], algorithm_1(CASES[name], placement[0])
    assert len(results) == len(expected) == placement[0]
    for result, state in zip(results, expected, strict=True):
        torch.testing.assert_close(result["state"], dict(state), rtol=0, atol=1e-6)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{} on {}".format(*p))
@pytest.mark.parametrize("name", CASES)
def test_step_tells_which_iterations_averaged(trained: Trained, name: str, placement: tuple[int, int]) -> None:
    case = CASES[name]
    due = [i for i in case.averages if not (case.at_end and i == case.iterations)]
    for result in trained[placement][name]:
        assert [i for i, averaged in enumerate(result["averaged"], start=1) if averaged] == due
        assert result["steps"] == case.iterations


@pytest.mark.parametrize("name", CASES)
def test_placement_changes_no_bit(trained: Trained, name: str) -> None:
    for d in (2, 3):
        for hosted, ranked in zip(trained[d, 1][name], trained[d, d][name], strict=True):
            assert all(same_bits(value, ranked["state"][key]) for key, value in hosted["state"].items())


@pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda p: "{} on {}".format(*p))
@pytest.mark.parametrize("name", CASES)
def test_replicas_are_bit_identical_after_an_average_and_apart_before(
    trained: Trained, name: str, placement: tuple[int, int]
) -> None:
    case = CASES[name]
    first, *others = [result["state"] for result in trained[placement][name]]
    key = "encode.weight" if case.model is Dense else "conv.weight"
    if case.iterations not in case.averages:
        assert all((other[key] - first[key]).abs().max() > 1e-3 for other in others)
        return
    local = {"norm.num_batches_tracked"} if "vector" in case.buffers else {"norm.num_batches_tracked", "vector"}
    for other in others:
        assert all(same_bits(value, other[key]) for key, value in first.items() if key not in local)


def test_the_oracle_tells_schedules_apart() -> None:
    """No case could pass with the averages of another: they move the weights 1000 times the tolerance."""
    sgd_cases = [Case(averages) for averages in [(), (3,), (6,), (3, 6), (4, 8), (8,)]]
    weights = [algorithm_1(case, 3)[1]["encode.weight"] for case in sgd_cases]
    for i, weight in enumerate(weights):
        assert all((weight - other).abs().max() > 1e-3 for other in weights[:i])


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{} on {}".format(*p))
def test_tied_weights_stay_tied_and_images_stay_channels_last(trained: Trained, placement: tuple[int, int]) -> None:
    results = [result for name in CASES for result in trained[placement][name]]
    assert all(result["tied"] and result["channels_last"] for result in results)


@pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda p: "{} on {}".format(*p))
def test_frozen_and_unused_parameters_are_the_first_replicas(trained: Trained, placement: tuple[int, int]) -> None:
    start = build(CASES["k = 1"], seed=0).state_dict()
    assert not torch.equal(start["frozen"], build(CASES["k = 1"], seed=1).state_dict()["frozen"])
    for result in trained[placement]["k = 1"]:
        assert same_bits(result["state"]["frozen"], start["frozen"])
        assert same_bits(result["state"]["unused"], start["unused"])


@pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda p: "{} on {}".format(*p))
def test_a_local_buffer_stays_apart_and_a_named_one_is_averaged(trained: Trained, placement: tuple[int, int]) -> None:
    """After iteration 9 of k = 3 the weights are equal; the vectors are so only if the caller names them."""
    first, second = [result["state"] for result in trained[placement]["the last iteration averages"][:2]]
    assert same_bits(first["encode.weight"], second["encode.weight"])
    assert (first["vector"] - second["vector"]).abs().max() > 1e-3
    first, second = [result["state"] for result in trained[placement]["a named buffer"][:2]]
    assert same_bits(first["vector"], second["vector"])
