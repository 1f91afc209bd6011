"""Signals that end a training early: all ranks save after the same iteration, and leave."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import torch

from lookaround_ddp._parent import PARENT, signal_when_parent_ends
from lookaround_ddp.distributed.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Stop:
    """Remembers the first of these signals that arrives, until the ranks ask each other for it.

    A second Ctrl-C leaves at once. Ranks whose torchrun dies get SIGTERM. Outside of its `with` block the
    signals do what they did before.

    Args:
        grace: seconds that a process has from a signal to its end. The ranks ask each other about four times in
            it, where a round ends if one ends by then, since they wait for each other there anyway.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.caught: signal.Signals | None = None
        self.before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            wanted = [each for each in SIGNALS if not (each == signal.SIGHUP and ignored(each))]
            self.before = {number: signal.signal(number, self._catch) for number in wanted}
        if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
            signal_when_parent_ends(signal.SIGTERM)
            if os.getppid() != PARENT:  # torchrun died before that; the ranks could meet and train without it
                sys.exit("stopped: torchrun has ended. Start the same command again")
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    def begin(self, iteration: int) -> None:
        """The training goes on after this iteration."""
        self.asked, self.since, self.next = iteration, time.perf_counter(), iteration + 1

    def agreed(self, iteration: int, round_ends: Callable[[int], bool], world: World) -> signal.Signals | None:
        """The signal that some rank got, if it is time to ask; the same on all ranks. Collective.

        Args:
            round_ends: whether an average step follows an iteration.
        """
        if iteration < self.next:
            return None
        now = time.perf_counter()
        votes = torch.zeros(1 + len(SIGNALS), dtype=torch.float64)
        votes[0] = (now - self.since) / (iteration - self.asked)
        if self.caught is not None:
            votes[1 + SIGNALS.index(self.caught)] = 1
        seconds, *counts = world.sum(votes).tolist()
        self.asked, self.since = iteration, now
        latest = iteration + max(1, int(self.grace / 4 / (seconds / world.size)))
        self.next = next((later for later in range(latest, iteration, -1) if round_ends(later)), latest)
        return next((number for number, count in zip(SIGNALS, counts, strict=True) if count), None)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is None and os.environ.get("RANK", "0") == "0":
            os.write(2, f"{signal.Signals(number).name}: the ranks save and leave as soon as they can\n".encode())
        self.caught = self.caught or signal.Signals(number)


def ignored(number: signal.Signals) -> bool:
    """As SIGHUP is under nohup."""
    return signal.getsignal(number) == signal.SIG_IGN
