"""Lookahead against values worked out by hand on L = w^2 / 2, where SGD of rate 0.5 halves w."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

from lookaround_ddp.optim.lookahead import Lookahead


def stepped(steps: int, momentum: float = 0.0, kind: Any = torch.optim.SGD, **settings: Any) -> tuple[Any, Any, Any]:
    weight = nn.Parameter(torch.tensor([16.0]))
    arguments = {"momentum": momentum} if kind is torch.optim.SGD else {}
    optimizer = kind([weight], lr=0.5, **arguments)
    lookahead = Lookahead(optimizer, **settings)
    for _ in range(steps):
        step(weight, optimizer, lookahead)
    return weight, optimizer, lookahead


def step(weight: nn.Parameter, optimizer: torch.optim.Optimizer, lookahead: Lookahead) -> bool:
    optimizer.zero_grad()
    (weight**2 / 2).sum().backward()
    optimizer.step()
    return lookahead.step()


def test_two_steps_forward_one_step_back() -> None:
    """16 -> 8, 4; the slow weight goes half of the way from 16 to 4, to 10; then 5, 2.5 -> 6.25."""
    seen = [stepped(n, k=2, alpha=0.5)[0].item() for n in range(1, 6)]
    assert seen == [8.0, 10.0, 5.0, 6.25, 3.125]


def test_the_slow_weights_are_lent() -> None:
    weight, _, lookahead = stepped(3, k=2, alpha=0.25)  # slow 16 + 0.25 (4 - 16) = 13, fast 6.5
    with contextlib.suppress(KeyError), lookahead.slow_weights():
        assert weight.item() == 13.0
        raise KeyError
    assert weight.item() == 6.5


def test_it_counts_attempted_steps() -> None:
    weight, _, lookahead = stepped(1, k=2)
    assert lookahead.step()  # one that a scaler skipped
    assert weight.item() == 12.0


def test_momentum_kept_reset_or_pulled_back() -> None:
    """Momentum 0.5: m = 16, w = 8; m = 16, w = 0. Pulled back from 0: m = 8. The second round starts from w = 8."""
    for momentum, expected in (("keep", 16.0), ("reset", 0.0), ("pullback", 8.0)):
        weight, optimizer, _ = stepped_with(momentum)
        assert optimizer.state[weight]["momentum_buffer"].item() == expected
        assert weight.item() == 8.0


def stepped_with(momentum: str, steps: int = 2) -> tuple[Any, Any, Any]:
    weight = nn.Parameter(torch.tensor([16.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=0.5)
    lookahead = Lookahead(optimizer, k=2, momentum=momentum)
    for _ in range(steps):
        step(weight, optimizer, lookahead)
    return weight, optimizer, lookahead


def test_what_is_pulled_back_to_is_not_the_optimizers_own_memory() -> None:
    """Round 2 from w = 8, m = 8: m = 4 + 8 = 12, w = 2; m = 6 + 2 = 8, w = -2; pulled back 0.5 * 8 + 0.5 * 8 = 8.

    With a buffer that the optimizer goes on to write into, the same holds by chance: round 3 tells them apart.
    From w = 3, m = 8: m = 7, w = -0.5; m = 3, w = -2; then 0.5 * 3 + 0.5 * 8 = 5.5 (aliased: 3).
    """
    found = [stepped_with("pullback", steps)[1].state_dict()["state"][0]["momentum_buffer"].item() for steps in (4, 6)]
    assert found == [8.0, 5.5]


def test_adams_first_moment_is_reset_and_its_second_stays() -> None:
    weight, optimizer, _ = stepped(2, kind=torch.optim.Adam, k=2)
    weight_reset = nn.Parameter(torch.tensor([16.0]))
    adam = torch.optim.Adam([weight_reset], lr=0.5)
    lookahead = Lookahead(adam, k=2, momentum="reset")
    for _ in range(2):
        step(weight_reset, adam, lookahead)
    assert adam.state[weight_reset]["exp_avg"].item() == 0.0 != optimizer.state[weight]["exp_avg"].item()
    assert adam.state[weight_reset]["exp_avg_sq"] == optimizer.state[weight]["exp_avg_sq"] != 0


@pytest.mark.parametrize("momentum", ["keep", "reset", "pullback"])
def test_it_goes_on_from_its_state_bit_for_bit(momentum: str) -> None:
    for stop in range(1, 6):
        weight, optimizer, lookahead = stepped_with(momentum, stop)
        state = copy.deepcopy((weight.data, optimizer.state_dict(), lookahead.state_dict()))
        fresh = nn.Parameter(state[0])
        other = torch.optim.SGD([fresh], lr=0.5, momentum=0.5)
        again = Lookahead(other, k=2, momentum=momentum)
        other.load_state_dict(state[1])
        again.load_state_dict(state[2])
        for _ in range(5):
            step(weight, optimizer, lookahead)
            step(fresh, other, again)
        assert torch.equal(weight, fresh)
        assert torch.equal(lookahead.slow[0], again.slow[0])
