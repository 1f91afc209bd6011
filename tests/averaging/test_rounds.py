"""Where rounds end, k over time included: against lists that were written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lookaround_ddp import Lookaround
from lookaround_ddp.averaging.rounds import Rounds
from lookaround_ddp.config.rounds import lengths
from lookaround_ddp.training.setup import steps_in_round


def shorter(steps: int) -> int:
    """4 steps in a round that begins before step 10, then 2."""
    return 4 if steps < 10 else 2


ENDS = {  # k, start, and the steps of the first 20 with which a round ends
    "an integer": (6, 3, [9, 15]),
    "never": (None, 0, []),
    "a function that is constant": (lambda steps: 6, 3, [9, 15]),
    "shorter": (shorter, 0, [4, 8, 12, 14, 16, 18, 20]),
    "shorter, after a start": (shorter, 3, [7, 11, 13, 15, 17, 19]),
    "longer with each round": (lambda steps: steps + 1, 0, [1, 3, 7, 15]),
    "a number of torch": (lambda steps: torch.tensor(7), 0, [7, 14]),
}


@pytest.mark.parametrize("name", ENDS)
def test_rounds_end_where_they_should(name: str) -> None:
    """Asked forwards or backwards, before or after the steps were done: the answer depends on the step alone."""
    k, start, ends = ENDS[name]
    rounds = Rounds(k, start)
    for order in (range(1, 21), range(20, 0, -1)):
        assert sorted(steps for steps in order if rounds.due(steps)) == ends
    assert [steps for steps in range(1, 21) if rounds.reach(steps)] == ends
    assert [steps for steps in range(1, 21) if rounds.due(steps)] == ends
    assert [steps for steps in range(8, 21) if rounds.reach(steps)] == [each for each in ends if each >= 8]


def test_a_step_asks_about_its_own_round_and_the_next_alone() -> None:
    """However long the run is; and a look ahead asks about the rounds between."""
    asked: list[int] = []

    def k(steps: int) -> int:
        asked.append(steps)
        return 3

    rounds = Rounds(k, 0)
    rounds.reach(3000)
    asked.clear()
    assert not rounds.reach(3001)
    assert rounds.due(3003)
    assert set(asked) == {3000}
    assert rounds.due(3009)
    assert set(asked) == {3000, 3003, 3006}


@pytest.mark.parametrize(
    ("k", "ends"),
    [
        (((0.0, "epoch"), (2.0, 3)), [5, 10, 13, 16, 19]),
        (((0.0, 4), (1.0, 3)), [4, 8, 11, 14, 17, 20]),  # the round of 4 to 8 has begun when the epoch ends, with 5
        (((0.0, 2), (1.2, "2 epochs")), [2, 4, 6, 16]),
        (((0.0, 7),), [7, 14]),
        ("epoch", [5, 10, 15, 20]),
    ],
)
def test_rounds_of_a_config(k: object, ends: list[int]) -> None:
    """Of 20 iterations, 5 in an epoch."""
    rounds = Rounds(steps_in_round(lengths(k, per_epoch=5)), start=0)
    assert [steps for steps in range(1, 21) if rounds.due(steps)] == ends


def test_the_count_goes_on_in_a_round_whose_k_has_just_changed() -> None:
    """Saved after 13 steps, in the round of 13 and 14, the first of 2. The state is that of a fixed k."""
    around = Lookaround(nn.Linear(1, 1), shorter)
    assert [step for step in range(1, 14) if around.step()] == [4, 8, 12]
    state = json.loads(json.dumps(around.state_dict()))
    assert state == {"steps": 13, "distances": None}
    other = Lookaround(nn.Linear(1, 1), shorter)
    other.load_state_dict(state)
    assert [step for step in range(14, 21) if other.step()] == [14, 16, 18, 20]
    other.load_state_dict({"steps": 5, "distances": None})  # earlier than it is
    assert [step for step in range(6, 15) if other.step()] == [8, 12, 14]


WRONG: dict[str, tuple[Callable[[int], object], str]] = {
    "0": (lambda steps: 0, "k(0) is 0: a round has a whole number of steps, 1 or more"),
    "a fraction": (lambda steps: 2.5, "k(0) is 2.5: a round has a whole number of steps, 1 or more"),
    "a truth": (lambda steps: steps < 5, "k(0) is True: a round has a whole number of steps, 1 or more"),
    "none": (lambda steps: None, "k(0) is None: a round has a whole number of steps, 1 or more"),
    "the delay": (lambda steps: 2, "k(0) is 2 and delay 2: a mean arrives before the next round ends"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_length_of_a_round_is_refused(name: str) -> None:
    """At once, or when the round is to begin."""
    k, message = WRONG[name]
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        Lookaround(nn.Linear(1, 1), k, delay=2)
    assert str(raised.value) == message
    around = Lookaround(nn.Linear(1, 1), lambda steps: 3 if steps < 3 else k(steps), delay=2)
    assert not around.step()
    assert not around.step()
    with pytest.raises(ValueError, match=re.escape(message.replace("k(0)", "k(3)"))):
        around.step()
