"""A run's checkpoints by their iterations: those that a user names, and one alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lookaround_ddp.checkpoint import Checkpoints
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError


class OneCheckpoint(Checkpoints):
    """A run's checkpoints, of which there is only this one."""

    def __init__(self, run: Path, iteration: int, world: World) -> None:
        super().__init__(run, 1, world, print)
        self.iteration = iteration

    def iterations(self) -> list[int]:
        return [self.iteration]


def named(given: Sequence[int] | None, known: Sequence[int], run: Path) -> list[int]:
    """The checkpoints that a user names, by default all.

    Raises:
        UserError: there is no such checkpoint.
    """
    for each in given or ():
        if each not in known:
            raise UserError(f"{run} has no checkpoint {each} of its rounds: it has {', '.join(map(str, known))}")
    return list(given or known)
