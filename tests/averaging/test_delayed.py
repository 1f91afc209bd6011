"""Delayed averaging (`delay`): a plain loop's weights, on 1, 2 and 3 ranks, and after a kill before they came."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from lookaround_ddp.averaging import delayed as delayed_module
from lookaround_ddp.averaging.exchange import average_matrices_
from tests.support.ranks import run, same_bits
from tests.support.trainings import Conv, square_loss

STEPS, K = 11, 4  # average steps after 4 and 8


def delayed(hosted: range, delay: int, **groups: Any) -> list[dict[str, Tensor]]:
    """With Lookaround."""
    torch.manual_seed(1)
    models = [Conv() for _ in hosted]
    around = Lookaround(models, k=K, delay=delay, measure=True, **groups)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for step in range(1, STEPS + 1):
        for replica, model, optimizer in zip(hosted, models, optimizers, strict=True):
            optimizer.zero_grad()
            square_loss(model, replica, step).backward()
            optimizer.step()
        around.step()
    return [{name: value.clone() for name, value in model.state_dict().items()} for model in models]


def plain(d: int, delay: int) -> list[dict[str, Tensor]]:
    """theta_j += phi_t - theta_j,t after step t + delay; running statistics are averaged after step t."""
    torch.manual_seed(1)
    replicas = [Conv() for _ in range(d)]
    for replica in replicas[1:]:
        replica.load_state_dict(replicas[0].state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in replicas]
    moves: dict[int, list[list[Tensor]]] = {}
    for step in range(1, STEPS + 1):
        for j, model in enumerate(replicas):
            optimizers[j].zero_grad()
            square_loss(model, j, step).backward()
            optimizers[j].step()
        with torch.no_grad():
            for j, own in enumerate(moves.pop(step, [])):
                for parameter, move in zip(replicas[j].parameters(), own, strict=True):
                    parameter += move
            if step % K == 0:
                means = [sum(values).div(d).float() for values in zip(*map(doubles, replicas), strict=True)]
                moves[step + delay] = [
                    [mean - p for mean, p in zip(means, model.parameters(), strict=True)] for model in replicas
                ]
                for name in ("running_mean", "running_var"):
                    statistics = [getattr(model.norm, name) for model in replicas]
                    mean = sum(value.double() for value in statistics).div(d).float()
                    for value in statistics:
                        value.copy_(mean)
    return [model.state_dict() for model in replicas]


def doubles(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().double() for parameter in model.parameters()]


def spoiled(rank: int, how: str) -> list[Any]:
    """Step 3 begins a mean of weights of which rank 1's are bad: what steps 3 to 5 raise, and the weights then."""
    torch.manual_seed(1)
    model = nn.Linear(2, 2)
    around = Lookaround(model, k=3, delay=2)
    with torch.no_grad():
        model.weight.fill_(rank)
    around.steps = 2
    if rank == 1:
        if how == "inf":
            model.bias.data[1] = torch.inf
        else:
            model.double()
    errors: list[str] = []
    for _ in range(3):
        try:
            around.step()
        except (FloatingPointError, ValueError) as error:
            errors.append(f"{around.steps}: {error}")
    weight = model.weight.detach().clone()
    model.float().bias.data.zero_()
    around.restart()
    return [errors, weight, around.corrections.due, model.weight.detach().clone()]


def slow_exchange(*args: Any, **kwargs: Any) -> Tensor | None:
    """On some ranks later than on others."""
    time.sleep(0.2 * dist.get_rank())
    return average_matrices_(*args, **kwargs)


def lent(rank: int) -> list[Tensor]:
    """The mean that is lent while corrections are on their way, three times, and the weights when these have come."""
    model = nn.Linear(40, 40)
    around = Lookaround(model, k=2, delay=1)
    means = []
    for number in range(3):
        with torch.no_grad():
            model.weight.fill_(rank + 3 * number)
        around.steps = 1
        around.step()
        for _ in range(2):
            with around.averaged() as mean:
                means.append(mean.weight.detach().clone())
        around.step()
        means.append(model.weight.detach().clone())
    return means


def worker(rank: int, ranks: int) -> dict[str, Any]:
    delayed_module.average_matrices_ = slow_exchange
    lends = lent(rank)
    delayed_module.average_matrices_ = average_matrices_
    pair, beside = dist.new_group([0, 1]), dist.new_group([0, 1])
    one = range(rank, rank + 1)
    bad = {how: spoiled(rank, how) for how in ("inf", "double")}
    results: dict[str, Any] = {f"3 of 3, {delay}": delayed(one, delay) for delay in (1, 3)} | bad
    results["lent"] = lends
    if rank < 2:
        results["2 of 2, 2"] = delayed(one, 2, group=pair, beside=beside)
        results["4 of 2, 2"] = delayed(range(2 * rank, 2 * rank + 2), 2, group=pair, beside=beside)
        try:
            Lookaround(nn.Linear(2, 2), delay=1, group=pair)
        except ValueError as error:
            results["no second group"] = str(error)
    return results


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return run(worker, 3)


@pytest.mark.parametrize(("name", "delay"), [("3 of 3, 1", 1), ("3 of 3, 3", 3), ("2 of 2, 2", 2), ("4 of 2, 2", 2)])
def test_the_weights_are_those_of_a_plain_loop(on_ranks: list[dict[str, Any]], name: str, delay: int) -> None:
    d = int(name[0])
    expected = plain(d, delay)
    ranked = [state for results in on_ranks for state in results.get(name, [])]
    for states in (ranked, delayed(range(d), delay)):
        assert len(states) == d
        for state, own in zip(states, expected, strict=True):
            assert all(same_bits(value, own[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("inf", "3: replica 1 not finite after iteration 3: "),
        ("double", "3: replica 1 has parameters or buffers of other dtypes or shapes, or others, than replica 0"),
    ],
)
def test_a_mean_of_bad_weights_is_refused_on_all_ranks_when_it_begins(
    on_ranks: list[dict[str, Any]], how: str, message: str
) -> None:
    """No weight has been touched by then, and all can begin anew."""
    for rank, results in enumerate(on_ranks):
        errors, weight, due, anew = results[how]
        assert len(errors) == 1
        assert errors[0].startswith(message)
        assert (weight == rank).all()
        assert due is None
        assert (anew == 0).all()


def test_the_mean_is_lent_while_corrections_are_on_their_way(on_ranks: list[dict[str, Any]]) -> None:
    """Whichever rank is first; of 0, 1 and 2, then of 3, 4 and 5, then of 6, 7 and 8."""
    for results in on_ranks:
        for number, mean in enumerate(results["lent"]):
            assert (mean == 1 + 3 * (number // 3)).all()


def test_a_late_mean_is_another_algorithm() -> None:
    """Delay 3 moves the weights otherwise than delay 0, whose replicas are one after step 8; the mean, hardly."""
    now, later = delayed(range(3), 0), delayed(range(3), 3)
    assert (now[0]["conv.weight"] - later[0]["conv.weight"]).abs().max() > 1e-3


def test_the_mean_of_the_replicas_is_the_same_before_and_after_a_correction() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(50, 50) for _ in range(3)]
    around = Lookaround(models, k=2, delay=1)
    for model in models:
        nn.init.normal_(model.weight)
    means = []
    for _ in range(3):
        around.step()
        with around.averaged() as mean:
            means.append(mean.weight.detach().clone())
    assert around.corrections.due is None
    torch.testing.assert_close(means[2], means[1], rtol=0, atol=1e-6)
    for model in models:
        torch.testing.assert_close(model.weight, means[0], rtol=0, atol=1e-6)


def test_what_is_saved_of_a_correction_is_its_own() -> None:
    """2,500 weights and 50 biases of 4 bytes, beside which a file has a few hundred; not those of three replicas."""
    around = Lookaround([nn.Linear(50, 50) for _ in range(3)], k=2, delay=1)
    around.step()
    around.step()
    buffer = io.BytesIO()
    torch.save(around.corrections.of(1), buffer)
    assert 10_200 < buffer.tell() < 2 * 10_200


def test_equal_replicas_are_left_as_they_are() -> None:
    models = [nn.Linear(3, 3) for _ in range(3)]
    around = Lookaround(models, k=2, delay=1)
    before = models[0].weight.detach().clone()
    for _ in range(4):
        around.step()
    assert all(same_bits(model.weight, before) for model in models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 5, "delay": 5}, "delay is 5: a mean can arrive 0 to k - 1 = 4 steps later"),
        ({"k": 5, "delay": -1}, "delay is -1"),
        ({"k": 5, "delay": 1, "optimizer_state": "reset"}, "optimizer_state='reset' and delay=1"),
    ],
)
def test_delays_that_cannot_be(options: dict[str, Any], message: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        Lookaround(model, optimizers=[torch.optim.SGD(model.parameters(), 0.1)], **options)


def test_a_group_that_leaves_out_ranks_needs_a_second_one(on_ranks: list[dict[str, Any]]) -> None:
    assert on_ranks[0]["no second group"].startswith("delay needs a second group of the same ranks")
