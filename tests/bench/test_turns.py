"""Competitors take turns, in an order that favours none."""

from __future__ import annotations

from lookaround_ddp.bench.figures import in_turn, turns


def test_every_second_round_is_reversed() -> None:
    assert list(turns("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_values_are_kept_in_the_order_of_the_rounds() -> None:
    clock = iter(range(6))
    found = in_turn({"a": lambda: next(clock), "b": lambda: next(clock)}, 3)
    assert found == {"a": [0, 3, 4], "b": [1, 2, 5]}
