"""Each mistake of a caller is refused with a message that names it, on every rank that it concerns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lookaround_ddp import Lookaround, Outer
from tests.support.ranks import run


def linear() -> nn.Module:
    return nn.Linear(2, 2)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def spectral() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(linear())


def optimized(state: str) -> Lookaround:
    model = linear()
    return Lookaround(model, optimizers=[sgd(model)], optimizer_state=state)


def take_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, columns: int = 2) -> None:
    model(torch.ones(1, columns)).sum().backward()
    optimizer.step()


SHARED = linear()
VECTORS = ("parametrizations.weight.0._u", "parametrizations.weight.0._v")
ALONE: dict[str, tuple[Callable[[], object], str]] = {
    "k = 0": (lambda: Lookaround(linear(), k=0), "k is 0: a round has at least 1 step; None never averages"),
    "k = -1": (lambda: Lookaround(linear(), k=-1), "k is -1: a round has at least 1 step; None never averages"),
    "start = -1": (
        lambda: Lookaround(linear(), start=-1),
        "start is -1: give the number of steps before the first round, 0 or more",
    ),
    "no models": (lambda: Lookaround([]), "no model: every rank hosts at least one replica"),
    "hosted shapes": (
        lambda: Lookaround([nn.Linear(2, 2), nn.Linear(2, 3)]),
        "the hosted models differ in structure: names, shapes and dtypes must be the same",
    ),
    "hosted dtypes": (
        lambda: Lookaround([nn.Linear(2, 2), nn.Linear(2, 2).double()]),
        "the hosted models differ in structure: names, shapes and dtypes must be the same",
    ),
    "hosted names": (
        lambda: Lookaround([nn.Sequential(linear()), nn.Sequential(nn.Identity(), linear())]),
        "the hosted models differ in structure: names, shapes and dtypes must be the same",
    ),
    "hosted buffers": (
        lambda: Lookaround([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)]),
        "the hosted models differ in structure: names, shapes and dtypes must be the same",
    ),
    "unknown buffer": (
        lambda: Lookaround(nn.BatchNorm1d(2), buffers=("running_mean", "u")),
        "no buffer named 'u' in the model: see model.named_buffers()",
    ),
    "average without optimizers": (
        lambda: Lookaround(linear(), optimizer_state="average"),
        "optimizer_state='average' needs `optimizers`, one for each model",
    ),
    "reset with too few optimizers": (
        lambda: Lookaround([linear(), linear()], optimizer_state="reset", optimizers=[sgd(linear())]),
        "optimizer_state='reset' needs `optimizers`, one for each model",
    ),
    "unknown optimizer_state": (
        lambda: Lookaround(linear(), optimizer_state="mean"),
        "optimizer_state is 'mean': use 'local', 'average' or 'reset'",
    ),
    "lazy parameters": (
        lambda: Lookaround(nn.Sequential(linear(), nn.LazyLinear(3))),
        "the model has lazy parameters or buffers without a shape: run one forward pass first",
    ),
    "lazy buffers": (
        lambda: Lookaround(nn.LazyBatchNorm1d(affine=False)),
        "the model has lazy parameters or buffers without a shape: run one forward pass first",
    ),
    "one model twice": (
        lambda: Lookaround([linear()] * 2),
        "the hosted models 0 and 1 share tensors: give each its own, as copy.deepcopy does",
    ),
    "a shared layer": (
        lambda: Lookaround([nn.Sequential(linear(), SHARED) for _ in range(3)]),
        "the hosted models 0 and 1 share tensors: give each its own, as copy.deepcopy does",
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_refused_on_one_rank(name: str) -> None:
    call, message = ALONE[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        call()
    assert str(raised.value) == message


def test_what_is_nearly_refused_is_taken() -> None:
    assert Lookaround(linear(), k=1, start=0).replicas == 1
    assert Lookaround(linear(), k=None).step() is False
    assert Lookaround([nn.BatchNorm1d(2), nn.BatchNorm1d(2)], buffers=("running_mean",)).replicas == 2
    assert Lookaround(nn.ModuleList([linear(), linear()])).replicas == 2
    lazy = nn.LazyLinear(3)
    lazy(torch.zeros(1, 2))
    assert Lookaround(lazy).replicas == 1


def test_hosted_optimizers_with_different_states_are_not_averaged() -> None:
    """The second replica has not used its second layer: no momentum to average there."""
    models = [nn.Sequential(linear(), linear()) for _ in range(2)]
    optimizers = [sgd(model) for model in models]
    around = Lookaround(models, k=1, optimizers=optimizers, optimizer_state="average")
    take_a_step(models[0], optimizers[0])
    take_a_step(models[1][0], optimizers[1])
    with pytest.raises(ValueError, match=r"^optimizer_state='average': the replicas' optimizers hold different states"):
        around.step()


def message_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def uneven_optimizers(rank: int) -> str:
    model = nn.Sequential(linear(), linear())
    optimizer = sgd(model)
    around = Lookaround(model, k=1, optimizers=[optimizer], optimizer_state="average")
    take_a_step(model if rank == 0 else model[0], optimizer)
    return message_of(around.step)


def worker(rank: int, ranks: int) -> dict[str, Any]:
    """Every mistake on both ranks; then a sound call, which shows that no rank was left in a collective."""
    wrapped = DistributedDataParallel(linear())
    messages = {
        "DDP": message_of(lambda: Lookaround(wrapped)),
        "DDP inside": message_of(lambda: Lookaround(nn.Sequential(wrapped))),
        "DDP's module": message_of(lambda: Lookaround(wrapped.module)),
        "shapes": message_of(lambda: Lookaround(nn.Linear(2, 2 + rank))),
        "dtypes": message_of(lambda: Lookaround(linear().to((torch.float32, torch.float64)[rank]))),
        "names": message_of(lambda: Lookaround(nn.ModuleDict({f"layer{rank}": linear()}))),
        "buffers": message_of(lambda: Lookaround(nn.BatchNorm1d(2, track_running_stats=rank == 0))),
        "k": message_of(lambda: Lookaround(linear(), k=5 + rank)),
        "a function": message_of(lambda: Lookaround(linear(), k=lambda steps: 5 + rank)),
        "a function on one rank": message_of(lambda: Lookaround(linear(), k=lambda steps: 5 - 5 * rank)),
        "start": message_of(lambda: Lookaround(linear(), start=rank)),
        "exact": message_of(lambda: Lookaround(linear(), exact=rank == 0)),
        "measure": message_of(lambda: Lookaround(linear(), measure=rank == 0)),
        "outer": message_of(lambda: Lookaround(linear(), outer=Outer(momentum=0.5 + rank / 4))),
        "names of buffers": message_of(lambda: Lookaround(spectral(), buffers=VECTORS[rank:])),
        "optimizer_state": message_of(lambda: optimized("local" if rank else "reset")),
        "one rank": message_of(lambda: Lookaround(wrapped if rank else wrapped.module)),
        "optimizers": uneven_optimizers(rank),
    }
    model = nn.Linear(1, 1, bias=False)
    around = Lookaround(model, k=1)
    model.weight.data.fill_(2.0 * rank)
    around.step()
    dist.barrier()
    return {**messages, "mean afterwards": model.weight.item()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 2)


@pytest.mark.parametrize("name", ["DDP", "DDP inside"])
def test_a_ddp_wrapped_model_is_refused(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        assert rank[name] == (
            "the model is wrapped in DistributedDataParallel, which averages the gradients of its ranks and so keeps "
            "their replicas alike: pass the bare module (model.module). Where each rank has a replica of its own, also "
            "train the bare module (for Lightning, accelerate and Hugging Face's Trainer see "
            "lookaround_ddp.integrations); where several ranks train one replica, wrap it with them as DDP's "
            "process_group, give the same group as `shards`, and as `group` the ranks that hold different replicas"
        )


def test_the_module_that_ddp_wraps_is_taken(ranks: list[dict[str, Any]]) -> None:
    assert [rank["DDP's module"] for rank in ranks] == ["no error", "no error"]


STRUCTURE = "structure of the model (digest)"
DIFFERENT = {
    "shapes": STRUCTURE,
    "dtypes": STRUCTURE,
    "names": STRUCTURE,
    "buffers": STRUCTURE,
    "k": "k",
    "a function": "k",
    "start": "start",
    "exact": "exact",
    "measure": "measure",
    "outer": "outer",
    "names of buffers": "buffers",
    "optimizer_state": "optimizer_state",
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_ranks_that_differ_are_refused_on_all_ranks(ranks: list[dict[str, Any]], name: str) -> None:
    for rank, other in [(0, 1), (1, 0)]:
        assert ranks[rank][name].startswith(f"rank {other} has another {DIFFERENT[name]} than rank {rank}: ")
        assert ranks[rank][name].endswith("; all ranks must build the same")


def test_the_refusal_of_different_ranks_shows_the_values(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["k"] == "rank 1 has another k than rank 0: 6, not 5; all ranks must build the same"
    assert ranks[1]["exact"] == "rank 0 has another exact than rank 1: True, not False; all ranks must build the same"


def test_what_one_rank_refuses_all_refuse(ranks: list[dict[str, Any]]) -> None:
    refusal = "the model is wrapped in DistributedDataParallel, which averages the gradients of its ranks"
    assert ranks[1]["one rank"].startswith(refusal)
    assert ranks[0]["one rank"].startswith(f"refused on rank 1: {refusal}")
    assert ranks[1]["a function on one rank"].startswith("k(0) is 0: a round has a whole number of steps")
    assert ranks[0]["a function on one rank"].startswith("refused on rank 1: k(0) is 0: a round has")


def test_ranks_whose_optimizers_have_different_states_are_refused_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["optimizers"].startswith(
            "optimizer_state='average': the replicas' optimizers hold different states; a parameter"
        )


def test_ranks_go_on_together_after_a_refusal(ranks: list[dict[str, Any]]) -> None:
    """The mean of 0 and 2."""
    assert [rank["mean afterwards"] for rank in ranks] == [1.0, 1.0]
