"""Ranks that part: in their arguments, models, steps or calls. All are told, and no weight is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from tests.support.ranks import run


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))


def fill(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    except TypeError as error:
        return f"TypeError: {error}"
    return "no error"


def fails(steps: int) -> int:
    raise TypeError("no number of steps")


def reshape(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(torch.ones(1, 2))


def register(model: nn.Sequential) -> None:
    model.append(nn.Linear(2, 2, bias=False))


def remove(model: nn.Sequential) -> None:
    model[1] = nn.Identity()


def register_buffer(model: nn.Sequential) -> None:
    model.register_buffer("table", torch.ones(3))


CHANGES = (reshape, register, remove, register_buffer)


def changed(change: Callable[[Any], None], rank: int, alone: bool) -> list[Any]:
    """What `averaged` and `average` say of a model that has changed, on rank 1 alone or on both; and the weight."""
    model = network()
    around = Lookaround(model)
    fill(model, float(rank))
    if rank == 1 or not alone:
        change(model)
    messages = [message_of(lambda: around.averaged().__enter__())]
    if change is not register_buffer:
        messages.append(message_of(around.average))
    return [messages, next(model.parameters()).flatten()[0].item()]


def begun_anew(rank: int) -> list[float]:
    """The mean after `restart`, which takes the changed models: both begin from rank 0's new layer, with 7s."""
    model = network()
    around = Lookaround(model, k=1)
    register(model)
    fill(model, 7.0 + rank)
    around.restart()
    started = model[2].weight[0, 0].item()
    fill(model, 2.0 * rank)
    around.step()
    return [started, model[2].weight[0, 0].item()]


HOW = ("a step more", "averaged on rank 0", "a step more, averaged states", "averaged on rank 0, averaged states")


def uneven(rank: int, how: str) -> list[Any]:
    """Rank 1, whose optimizer alone has momentum, is a step ahead; or rank 0 alone lends the mean after step 2 of 3."""
    model, (how, _, states) = network(), how.partition(", ")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9 * rank)
    around = Lookaround(model, k=3, optimizers=[optimizer], optimizer_state="average" if states else "local")
    fill(model, float(rank))
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    for _ in range(2):
        around.step()
    if how == "a step more":
        if rank == 1:
            around.load_state_dict({"steps": 3, "distances": None})
        message = message_of(around.average)
    elif rank == 0:
        message = message_of(lambda: around.averaged().__enter__())
    else:
        message = message_of(around.step)
    return [message, model[0].weight[0, 0].item()]


def changed_in_flight(rank: int) -> str:
    """A layer more while a mean is on its way."""
    model = network()
    around = Lookaround(model, k=3, delay=1)
    for _ in range(3):
        around.step()
    register(model)
    return message_of(around.step)


def left_alone(rank: int) -> str:
    """Rank 1 ends its loop, and its process group, a step before rank 0."""
    model = network()
    around = Lookaround(model, k=2)
    fill(model, float(rank))
    dist.barrier()
    message = "no error"
    try:
        for _ in range(2 - rank):
            around.step()
    except RuntimeError as error:
        message = str(error)
    dist.destroy_process_group()
    return message


def worker(rank: int, ranks: int) -> dict[str, Any]:
    both = dist.new_group()
    results: dict[str, Any] = {
        "k": message_of(lambda: Lookaround(network(), k=5 if rank == 0 else "5")),
        "a TypeError": message_of(lambda: Lookaround(network(), k=5 if rank == 0 else fails)),
        "a list of no models": message_of(lambda: Lookaround(network() if rank == 0 else 3)),
        "beside": message_of(lambda: Lookaround(network(), delay=1, beside=both if rank == 0 else None)),
        "shards": message_of(lambda: Lookaround(network(), shards=None if rank == 0 else both)),
        "anew": begun_anew(rank),
        "in flight": changed_in_flight(rank),
    }
    for change in CHANGES:
        for alone in (True, False):
            results[f"{change.__name__}, {alone}"] = changed(change, rank, alone)
    results |= {how: uneven(rank, how) for how in HOW}
    results["left alone"] = left_alone(rank)
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 2)


def test_an_argument_that_one_rank_alone_has_wrong_is_refused_on_all(ranks: list[dict[str, Any]]) -> None:
    refusal = "k is '5': give a whole number of steps in a round; None never averages"
    assert [rank["k"] for rank in ranks] == [f"refused on rank 1: {refusal}", refusal]
    refusal = "TypeError: no number of steps"
    assert [rank["a TypeError"] for rank in ranks] == [f"refused on rank 1: {refusal}", refusal]
    refusal = "no model, but of type int: give an nn.Module, or a list of several"
    assert [rank["a list of no models"] for rank in ranks] == [f"refused on rank 1: {refusal}", refusal]


def test_groups_that_one_rank_alone_has_are_refused_on_all(ranks: list[dict[str, Any]]) -> None:
    for (rank, other), (own, others) in {(0, 1): ("True", "False"), (1, 0): ("False", "True")}.items():
        said = f"rank {other} has another beside (is there one) than rank {rank}: {others}, not {own}; all ranks must"
        assert ranks[rank]["beside"].startswith(said)
    assert ranks[0]["shards"].startswith("rank 1 has another size of shards than rank 0: 2, not 1; all ranks must")


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
def test_a_model_that_changed_on_one_rank_is_refused_on_all(ranks: list[dict[str, Any]], change: str) -> None:
    for number, rank in enumerate(ranks):
        messages, weight = rank[f"{change}, True"]
        for message in messages:
            assert message == (
                "replica 1 has parameters or buffers of other dtypes or shapes, or others, than replica 0 has: change "
                "all replicas alike"
            )
        assert weight == (1.0 if change == "reshape" and number == 1 else number)


MEND = "since Lookaround was made: call restart(), which gives all replicas the first one's weights, or make a new one"
WHAT = {
    "reshape": "'0.weight' of the model has become another (shape (1, 2); it was shape (2, 2))",
    "register": "'2.weight' of the model has become another (shape (2, 2); it was none)",
    "remove": "'1.weight' of the model has become another (none; it was shape (2,))",
}


@pytest.mark.parametrize("change", WHAT)
def test_models_that_changed_alike_are_refused_with_the_mend(ranks: list[dict[str, Any]], change: str) -> None:
    for rank in ranks:
        messages, _ = rank[f"{change}, False"]
        assert messages == [f"{WHAT[change]} {MEND}; on all ranks"] * 2


def test_a_buffer_that_stays_with_its_replica_may_come_later(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["register_buffer, False"][0] == ["no error"]


def test_the_mend_mends(ranks: list[dict[str, Any]]) -> None:
    """The mean of 0 and 2, of a layer that both began with rank 0's 7s."""
    assert [rank["anew"] for rank in ranks] == [[7.0, 1.0]] * 2


def test_a_mean_on_its_way_meets_other_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["in flight"] == (
            "parameters have become others while their mean was on its way: change them right after average(), which "
            "leaves none on its way, and call restart(); on all ranks"
        )


@pytest.mark.parametrize("how", HOW)
def test_ranks_at_different_steps_are_refused_on_all(ranks: list[dict[str, Any]], how: str) -> None:
    for number, rank in enumerate(ranks):
        message, weight = rank[how]
        assert message == (
            "rank 1 averages after step 3 and rank 0 after step 2: call step() on every rank "
            "equally often, and average(), averaged() and check_finite() on all of them or on none"
        )
        assert weight == number


def test_a_rank_that_others_left_says_for_what_it_waited(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["left alone"] == "no error"
    assert ranks[0]["left alone"].endswith(
        " (rank 0 waited for the other ranks in the average after step 2: unless one of them has failed, they called "
        "step() less often, or average() or averaged() not at all)"
    )


def test_the_count_is_compared_where_the_host_does_not_wait() -> None:
    """As on a GPU: what one rank gives of its hosted replicas is of one step, and the table is read by `look` alone."""
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    around = Lookaround(models, k=1)
    around._average.later = True
    for number, model in enumerate(models):
        fill(model, 2.0 * number)
    around.steps = 2**31 + 5  # more than the bits that are compared
    around.step()
    around.look()
    weights: list[Tensor] = [model.weight for model in models]
    assert [weight.item() for weight in weights] == [1.0, 1.0]
