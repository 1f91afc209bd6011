"""Handles signals that end a training early: all ranks save after the same iteration, and leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from lookaround_ddp._parent import PARENT, signal_when_parent_ends
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import is_main_rank

LEFT_FOR = "LOOKAROUND_LEFT_FOR"  # the agent's variable: a file for the number of the signal that the ranks left for
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class PreemptionHandler:
    """Catches the first of these signals, until the ranks vote on whether one has come.

    A second Ctrl-C leaves at once. Ranks whose torchrun dies get SIGTERM. Outside of its `with` block the
    signals do what they did before.

    Args:
        grace: seconds that a process has from a signal to its end. The ranks vote about four times in it, at the end
            of a round if one ends by then, since they wait for each other there anyway.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.caught: signal.Signals | None = None
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            wanted = [each for each in STOP_SIGNALS if not (each == signal.SIGHUP and ignored(each))]
            self.before = {number: signal.signal(number, self._catch) for number in wanted}
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
            signal_when_parent_ends(signal.SIGTERM)
            if os.getppid() != PARENT:  # torchrun died before that; the ranks could meet and train without it
                sys.exit("stopped: torchrun has ended. Start the same command again")
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # it is what signal.signal returned

    def start(self, iteration: int) -> None:
        """Starts timing the interval until the first vote, which follows the next iteration."""
        self.voted, self.since, self.next = iteration, time.perf_counter(), iteration + 1

    def vote(
        self, iteration: int, round_ends: Callable[[int], bool], world: World, written: bool
    ) -> tuple[signal.Signals | None, bool]:
        """Returns the signal that some rank got, if it is time to vote; the same on all ranks. Collective.

        None if it is not time, or no rank got one. Also returns whether all ranks have written their files.

        Args:
            iteration: the number of those that are done.
            round_ends: returns whether an average step follows an iteration.
            written: whether this rank has written its files of a checkpoint that is under way.
        """
        if iteration < self.next:
            return None, False
        now = time.perf_counter()
        votes = torch.zeros(2 + len(STOP_SIGNALS), dtype=torch.float64)
        votes[0], votes[1] = (now - self.since) / (iteration - self.voted), written
        if self.caught is not None:
            votes[2 + STOP_SIGNALS.index(self.caught)] = 1
        seconds, ready, *counts = world.sum(votes).tolist()
        self.voted, self.since = iteration, now
        latest = iteration + max(1, int(self.grace / 4 / (seconds / world.size)))
        self.next = next((later for later in range(latest, iteration, -1) if round_ends(later)), latest)
        caught = next((number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)
        return caught, ready == world.size

    def _catch(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first signal; raises KeyboardInterrupt on a second Ctrl-C."""
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is None and is_main_rank():
            os.write(2, f"{signal.Signals(number).name}: the ranks save and leave as soon as they can\n".encode())
        self.caught = self.caught or signal.Signals(number)


def tell_agent(number: signal.Signals) -> None:
    """Tells the agent that started this rank, if one did, for which signal the rank leaves, with status 0."""
    if LEFT_FOR in os.environ:
        Path(os.environ[LEFT_FOR]).write_text(str(int(number)))


def ignored(number: signal.Signals) -> bool:
    """Returns whether a signal is ignored, as SIGHUP is under nohup."""
    return signal.getsignal(number) == signal.SIG_IGN
