"""An outer optimizer and what is bad, converted or not to be combined: nothing moves, and nobody waits."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from lookaround_ddp import Lookaround, Outer
from tests.averaging.test_outer import DILOCO, KINDS, Moving
from tests.support.ranks import same_bits
from tests.support.waits import waits


@pytest.mark.parametrize("later", [False, True])
def test_where_a_replica_is_bad_nothing_moves(later: bool) -> None:
    """Neither phi nor v, also where the host hears of it later, as on a GPU."""
    models = [Moving(), Moving()]
    around = Lookaround(models, k=1, outer=Outer(0.5, 0.5, nesterov=False))
    around._average.later = later
    for model in models:
        model.move(-1.0)
    around.step()
    models[1].w.data[0] = torch.nan
    models[0].move(-1.0)
    kept, weights = copy.deepcopy(around.outer.state_dict()), models[0].w.detach().clone()
    raising = around.look if later else around.step
    if later:
        around.step()
    with pytest.raises(FloatingPointError, match="replica 1 not finite after iteration 2"):
        raising()
    now = around.outer.state_dict()
    for name in ("phi", "velocity"):
        assert all(same_bits(one, other) for one, other in zip(kept[name], now[name], strict=True))
    assert same_bits(models[0].w, weights)
    models[1].load_state_dict(models[0].state_dict())
    around.step()
    assert models[1].values() == [-1.25]  # phi -0.5, v 1, the mean -1.5: v is 1.5


@pytest.mark.parametrize("outer", KINDS.values(), ids=KINDS)
def test_the_host_of_a_gpu_waits_for_nothing(outer: Outer) -> None:
    """In the first rounds, in which phi and v are laid out, and in later ones."""
    models = [Moving(), Moving()]
    around = Lookaround(models, k=1, outer=outer)
    around._average.later = True
    for _ in range(3):
        around.look()  # of which it has heard by then
        with waits() as found:
            for model in models:
                model.w.data += 1.0
            around.step()
        assert found == []


@pytest.mark.parametrize("later", [False, True])
def test_a_first_mean_that_is_bad_is_not_where_it_begins(later: bool) -> None:
    models = [Moving(), Moving()]
    around = Lookaround(models, k=1, start=1, outer=Outer(0.5, 0.0))
    around._average.later = later
    around.step()
    models[1].w.data[0] = torch.nan
    with pytest.raises(FloatingPointError):
        around.step()
    models[1].load_state_dict(models[0].state_dict())
    models[1].move(2.0)
    around.step()
    assert models[0].values() == [1.0]


def test_half_precision_has_a_velocity_in_fp32_and_models_may_be_converted() -> None:
    """Gradients of 2^-9 add up in v, of which bf16 could not hold 1 + 2^-9."""
    models = [nn.Linear(2, 2, bias=False) for _ in range(2)]
    around = Lookaround(models, k=1, outer=Outer(2.0**-9, 0.5, nesterov=False))
    for model in models:
        nn.init.constant_(model.weight, 0.0)
    around.restart()
    for by in (2.0, 2.0**-9):  # v is -2, then -1 - 2^-9 - 2^-8 beside phi at 2^-8
        for model in models:
            model.weight.data += by
        around.step()
        if by == 2.0:
            assert models[0].weight.flatten().tolist() == [2.0**-8] * 4
            for model in models:
                model.to(torch.bfloat16)
    (velocity,), (phi,) = (around.outer.state_dict()[name] for name in ("velocity", "phi"))
    assert (velocity.dtype, phi.dtype) == (torch.float32, torch.bfloat16)
    assert velocity.flatten().tolist() == [-1 - 2.0**-9] * 4
    models[0].weight, models[1].weight = (nn.Parameter(torch.zeros(3, 2)) for _ in range(2))
    with pytest.raises(
        ValueError, match=r"^'weight' of the model has become another .shape .3, 2.; it was shape .2, 2.. since"
    ):
        around.step()
    around.restart()
    for model in models:
        model.weight.data += 1.0
    around.step()
    assert models[1].weight.flatten().tolist() == [2.0**-9] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outer": Outer(lr=0.0)}, "outer is Outer(lr=0.0, momentum=0.9, nesterov=True): lr is greater than 0"),
        ({"outer": Outer(momentum=1.0)}, "momentum at least 0 and less than 1"),
        ({"outer": DILOCO, "k": None}, "outer moves phi when a round ends, and k=None has none"),
        ({"outer": DILOCO, "delay": 1}, "outer needs the mean when a round ends, not 1 steps later"),
        ({"outer": DILOCO, "models": 1}, "one replica has none: use outer=None"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    models = [nn.Linear(2, 2) for _ in range(options.pop("models", 2))]
    with pytest.raises(ValueError, match=re.escape(message)):
        Lookaround(models, **options)
