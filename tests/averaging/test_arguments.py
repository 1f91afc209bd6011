"""What `Lookaround` is given: whole numbers, the models' own optimizers, tensors that have a mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround, Nodes, Outer

OUTER = "lr is greater than 0, momentum at least 0 and less than 1"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"k {k!r}": ({"k": k}, f"k is {k!r}: give a whole number of steps in a round; None never averages")
        for k in (2.5, 5.0, True, inf, "5", np.float64(5.0), [5])
    },
    **{
        f"start {start!r}": (
            {"start": start},
            f"start is {start!r}: give a whole number of steps before the first round",
        )
        for start in (195.5, False, inf, "0", None)
    },
    **{
        f"delay {delay!r}": ({"delay": delay}, f"delay is {delay!r}: give a whole number of steps until a mean arrives")
        for delay in (1.5, True, "1", None)
    },
    "a function": ({"k": lambda steps: 2.0}, "k(0) is 2.0: a round has a whole number of steps, 1 or more"),
    "a function's text": ({"k": lambda steps: "5"}, "k(0) is '5': a round has a whole number of steps, 1 or more"),
    "nodes": ({"nodes": Nodes(2.0, 10)}, "nodes is Nodes(size=2.0, k=10): size and k are whole numbers"),
    "nodes' k": ({"nodes": Nodes(2, inf)}, "nodes is Nodes(size=2, k=inf): size and k are whole numbers"),
    "no nodes": ({"nodes": 2}, "nodes is 2: give Nodes(...), or None"),
    "no outer": ({"outer": 0.7}, "outer is 0.7: give Outer(...), or None"),
    "outer's text": (
        {"outer": Outer("1")},
        f"outer is Outer(lr='1', momentum=0.9, nesterov=True): {OUTER}",
    ),
    "outer's nan": (
        {"outer": Outer(float("nan"))},
        f"outer is Outer(lr=nan, momentum=0.9, nesterov=True): {OUTER}",
    ),
    "another model's optimizer": (
        {"optimizers": [torch.optim.SGD(nn.Linear(1, 1).parameters()) for _ in range(4)], "optimizer_state": "reset"},
        "optimizer 0 holds no parameter of model 0: give the optimizers of these models, in their order",
    ),
    "a group without this rank": (
        {"group": dist.GroupMember.NON_GROUP_MEMBER},
        "this rank is not in `group`: only the ranks of a group create a Lookaround with it",
    ),
    "shards without this rank": (
        {"shards": dist.GroupMember.NON_GROUP_MEMBER},
        "this rank is not in `shards`: only the ranks of a group create a Lookaround with it",
    ),
    "ranks": ({"group": [0, 1]}, "group is [0, 1]: give a process group, as dist.new_group makes it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_no_round_can_meet_are_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        Lookaround([nn.Linear(2, 2) for _ in range(4)], **options)
    assert str(raised.value) == message


def test_whole_numbers_of_any_library_are_taken() -> None:
    """k 3 after start 2: the first average follows step 5, and its mean arrives with step 6."""
    models = [nn.Linear(1, 1, bias=False) for _ in range(4)]
    around = Lookaround(models, np.int64(3), start=torch.tensor(2), delay=np.int32(1), buffers=())
    for number, model in enumerate(models):
        nn.init.constant_(model.weight, float(number))
    assert [around.step() for _ in range(5)] == [False] * 4 + [True]
    assert json.loads(json.dumps(around.state_dict()))["correction_due"] == 6
    around.step()
    assert [model.weight.item() for model in models] == [1.5] * 4
    assert Lookaround(models, 5, nodes=Nodes(np.int64(2), np.int64(10))).due_over_all(10)


def layer(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    return model


def with_buffer(buffer: Tensor) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_buffer("table", buffer)
    return model


UNFIT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "meta": (
        lambda: layer(torch.ones(2, 2, device="meta")),
        "'0.weight' of the model is on the device meta, without values: call model.to_empty(device=...) and "
        "initialize it first",
    ),
    "float8": (
        lambda: layer(torch.ones(2, 2).to(torch.float8_e4m3fn)),
        "'0.weight' of the model is of torch.float8_e4m3fn, too coarse for a mean: train in bfloat16 or a wider dtype",
    ),
    "sparse": (
        lambda: layer(torch.eye(2).to_sparse()),
        "'0.weight' of the model is torch.sparse_coo: convert it to a dense one first, as to_dense or dequantize does",
    ),
    "expanded": (
        lambda: with_buffer(torch.ones(2, 1).expand(2, 3)),
        "'table' of the model has several elements in one place, as expand makes them: give it memory of its own by "
        "contiguous()",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_tensors_that_no_mean_can_be_written_into_are_refused_by_name(name: str) -> None:
    make, message = UNFIT[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        Lookaround([make(), make()])
    assert str(raised.value) == message


def test_what_looks_like_them_is_taken() -> None:
    """Positions that a single row is expanded to, as in BERT; a transposed weight; one with gaps."""
    for model in (
        with_buffer(torch.arange(3).expand(1, -1)),
        layer(torch.ones(2, 3).t()),
        layer(torch.ones(2, 4)[:, ::2]),
        with_buffer(torch.ones(0, 3)),
    ):
        assert Lookaround(model).replicas == 1


def test_one_name_and_one_optimizer_need_no_list() -> None:
    model = nn.BatchNorm1d(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    around = Lookaround(model, buffers="running_mean", optimizers=optimizer, optimizer_state="reset")
    assert around.extra_buffers == {"running_mean"}
    assert around.optimizers == [optimizer]


def test_a_compiled_model_lends_the_one_that_it_compiles() -> None:
    """Its names are those that others load it by; the compiled one has the same weights meanwhile."""
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    compiled = [torch.compile(model) for model in models]
    around = Lookaround(compiled)
    for number, model in enumerate(compiled):
        nn.init.constant_(model.weight, float(number))
    with around.averaged() as mean_model:
        assert {name: value.item() for name, value in mean_model.state_dict().items()} == {"weight": 0.5}
        assert compiled[0].weight.item() == 0.5
    assert compiled[0].weight.item() == 0.0


def test_while_the_mean_is_lent_nothing_else_averages() -> None:
    models = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    around = Lookaround(models, k=1)
    for value, model in zip((1.0, 3.0), models, strict=True):
        nn.init.constant_(model.weight, value)
    calls = {"step": around.step, "average": around.average, "restart": around.restart}
    calls["averaged"] = lambda: around.averaged().__enter__()
    with around.averaged() as mean_model:
        for name, call in calls.items():
            with pytest.raises(ValueError, match=rf"^{name}\(\) inside averaged\(\): a replica has the mean's weights"):
                call()
        assert mean_model.weight.item() == 2.0
    assert [model.weight.item() for model in models] == [1.0, 3.0]
    assert around.steps == 0
    around.step()
    assert [model.weight.item() for model in models] == [2.0, 2.0]
