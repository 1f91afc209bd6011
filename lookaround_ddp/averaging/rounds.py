"""When rounds end: every k steps, or after as many as a function gives for each of them."""

from __future__ import annotations

import operator
from collections.abc import Callable

RoundLength = int | Callable[[int], int] | None


def whole(value: object) -> int | None:
    """Returns a whole number of any library as an int; None for anything else, such as 2.0 or True."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # it raises of anything else
    except TypeError:
        return None


class Rounds:
    """Where the rounds of a training end, by the count of its steps alone.

    Args:
        k, start, delay: see `Lookaround`.

    Raises:
        ValueError: one of them is no whole number.
    """

    def __init__(self, k: RoundLength, start: int, delay: int = 0) -> None:
        self.k = k if k is None or callable(k) else _checked_whole("k", k, "in a round; None never averages")
        self.start = _checked_whole("start", start, "before the first round")
        self.delay = _checked_whole("delay", delay, "until a mean arrives")
        self._began = self.start  # steps before the round that is under way, or an earlier one

    def length(self, begun: int) -> int | None:
        """Returns the steps in a round that begins after `begun` steps; None: it never ends.

        Raises:
            ValueError: the function gave no number of steps, or no more than the delay.
        """
        return self._asked(self.k, begun) if callable(self.k) else self.k

    def _asked(self, k: Callable[[int], int], begun: int) -> int:
        found = k(begun)
        steps = whole(found)
        if steps is None or steps < 1:
            raise ValueError(f"k({begun}) is {found!r}: a round has a whole number of steps, 1 or more")
        if steps <= self.delay:
            raise ValueError(f"k({begun}) is {steps} and delay {self.delay}: a mean arrives before the next round ends")
        return steps

    def due(self, steps: int) -> bool:
        """Returns whether a round ends with step number `steps`, counted from 1."""
        if self.k is None or steps <= self.start:
            return False
        if not callable(self.k):
            return (steps - self.start) % self.k == 0
        end = self._began if steps > self._began else self.start
        while end < steps:
            end += self._asked(self.k, end)
        return end == steps

    def reach(self, steps: int) -> bool:
        """Notes that so many steps are done, so that `due` need not begin at the first round; returns what it does."""
        due = self.due(steps)
        if callable(self.k):
            if steps < self._began:
                self._began = self.start
            while (end := self._began + self._asked(self.k, self._began)) <= steps:
                self._began = end
        return due


def _checked_whole(name: str, value: object, what: str) -> int:
    number = whole(value)
    if number is None:
        raise ValueError(f"{name} is {value!r}: give a whole number of steps {what}")
    return number
