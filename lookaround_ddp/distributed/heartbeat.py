"""Heartbeats: each rank says what it is doing, so that those that wait in vain can name the rank they wait for."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lookaround_ddp.errors import shortened, told

BEAT = 1.0  # seconds between two signs of life

ANSWER_SECONDS = 3.5  # within which a living rank gives a sign of life, and the waiting ones say that they wait

# What torch's RuntimeErrors say when the connection to other ranks is at fault
COLLECTIVE = re.compile(r"gloo|NCCL|c10d|TCPStore|Connection (closed|reset)|Broken pipe|pair closure")

AGAIN = "Start the same command again"
OWN_ERROR = ("failed", "left (SystemExit")  # how the reasons of ranks begin that ended by themselves
UNSEEN = {"beats": 0, "doing": "starting", "seconds": 0.0, "ended": ""}  # the state of a rank that was not heard of


class LostRanks(RuntimeError):
    """Ranks that the others waited for in vain; `speaker` is the one rank that says so, and what is to be done."""

    def __init__(self, message: str, speaker: int, mend: str = AGAIN) -> None:
        self.speaker, self.mend = speaker, mend
        super().__init__(message)


class Heartbeat:
    """Writes signs of life of this rank into the job's store, from a thread.

    No clock is compared with another host's.

    Args:
        timeout: seconds that ranks wait for each other.
    """

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout
        self.beats, self.ended, self.stalled, self.gone = 0, "", False, False
        self.does("starting")
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # a connection of its own: on the process group's a sign of life could wait behind a collective
        store = dist.TCPStore(
            host, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS), wait_for_workers=False
        )
        self.store = dist.PrefixStore("heartbeat", store)
        self._tell()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self.thread.start()

    def does(self, what: str) -> None:
        """Records what this rank begins to do, such as "evaluating after iteration 15"."""
        self.doing, self.since = what, time.monotonic()

    def close(self) -> None:
        """Ends the thread."""
        self.closed.set()
        self.thread.join(ANSWER_SECONDS)

    def explain(self, error: Exception) -> LostRanks | None:
        """Tells the others why this rank leaves; finds out which ranks did not come to a collective that failed.

        Returns None if the error is this rank's own.
        """
        if not lost_connection(error):
            self.leave(f"failed ({told(error)})")
            return None
        self.close()
        found: list[Mapping[str, Any]] = []
        waited = re.search("(?i)timed? ?out", str(error)) is not None
        if self._try(lambda: found.extend(self._roll_call(waited))):
            message, speaker = verdict(found, self.rank, self.timeout)
            mend = advice(found)
        else:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            message, speaker = f"rank 0 has ended, or its host cannot be reached: nobody answers at {where}", self.rank
            mend = f"{AGAIN}, unless rank 0 said what is to be mended first"
        return LostRanks(f"{message} ({short(error)})", speaker, mend)

    def leave(self, reason: str) -> None:
        """Ends the thread, and tells the others why this rank ends, such as "left (KeyboardInterrupt)"."""
        self.close()
        self._try(lambda: self._end(reason), ANSWER_SECONDS)

    def _live(self) -> None:
        """Gives signs of life until `close`; rank 0 prints what all are doing when it makes no progress."""
        while not self.closed.wait(BEAT):
            self.beats += 1
            try:
                self._tell()
                stalled = time.monotonic() - self.since > self.timeout / 2
                if stalled and not self.stalled and self.rank == 0:
                    told = describe_states(self._read())
                    print(f"no progress for {self.timeout / 2:g} s: {told}", file=sys.stderr, flush=True)
                self.stalled = stalled
            except RuntimeError:  # the store has gone: the collectives will fail, and `explain` says why
                self.gone = True
                return

    def _tell(self) -> None:
        """Writes this rank's state into the store."""
        state = {
            "beats": self.beats,
            "doing": self.doing,
            "seconds": time.monotonic() - self.since,
            "ended": self.ended,
        }
        self.store.set(str(self.rank), json.dumps(state))

    def _end(self, reason: str) -> None:
        self.ended = reason
        self._tell()

    def _read(self) -> list[dict[str, Any]]:
        """Returns each rank's last state; of a rank that has told none, a first one."""
        ranks = [str(rank) for rank in range(self.size)]  # the store would wait for what is not there
        return [json.loads(self.store.get(rank)) if self.store.check([rank]) else dict(UNSEEN) for rank in ranks]

    def _roll_call(self, waited: bool) -> Sequence[Mapping[str, Any]]:
        """Returns each rank's last state, with `alive`: whether it gave a sign of life meanwhile, or said why it ends.

        Args:
            waited: whether this rank waited for the whole timeout.
        """
        before = self._read()
        others = [state["ended"] for rank, state in enumerate(before) if rank != self.rank]
        self._end("came too late" if set(others) == {"waited"} and not waited else "waited")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            time.sleep(BEAT / 5)
            now = self._read()
            alive = [bool(new["ended"]) or new["beats"] > old["beats"] for old, new in zip(before, now, strict=True)]
            if all(state["ended"] for state in now) or time.monotonic() > deadline:
                break
        if self.rank == 0:
            time.sleep(BEAT)  # the store may end with this process, and others still read it
        return [{**state, "alive": each} for state, each in zip(now, alive, strict=True)]

    def _try(self, call: Any, seconds: float = 3 * ANSWER_SECONDS) -> bool:
        """Calls something that needs the store; returns whether the store answered within so many seconds.

        It is called in a thread, since on a dead link the store's client waits for much longer than this does.
        """
        if self.gone:
            return False
        done: list[bool] = []

        def attempt() -> None:
            try:
                call()
                done.append(True)
            except RuntimeError:  # torch raises it if the store has gone or does not answer
                done.append(False)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(seconds)
        return done == [True]


def lost_connection(error: Exception) -> bool:
    """Returns whether an error comes from the connection to other ranks, and not from a mistake of this one."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(COLLECTIVE.search(str(error))))


def verdict(states: Sequence[Mapping[str, Any]], rank: int, timeout: float) -> tuple[str, int]:
    """Returns what the ranks that waited say of the others, and the rank that is to say it.

    Args:
        states: of each rank, what it was `doing`, for how many `seconds`, why it `ended`, and whether it is `alive`.
        rank: the one that asks; its own state says that it ended.
    """
    if states[rank]["ended"] == "came too late":
        return f"rank {rank} came too late: the others had waited {timeout:g} s for it", rank
    waiting = [number for number, state in enumerate(states) if state["ended"] == "waited"]
    say = []
    for number, state in enumerate(states):
        if not state["ended"] and state["alive"]:
            say.append(f"rank {number} is still {state['doing']}, for {state['seconds']:.0f} s")
        elif not state["ended"]:
            say.append(f"rank {number} gives no sign of life, last seen {state['doing']}: it was killed, or is cut off")
        elif state["ended"] != "waited":
            say.append(f"rank {number} {state['ended']}")
    if not say:
        say = ["all of them did: the network between them failed, or one was slower than the timeout"]
    doing = states[waiting[0]]["doing"]
    return f"{_ranks(waiting)} waited in vain, {doing} (timeout {timeout:g} s): {'; '.join(say)}", waiting[0]


def advice(states: Sequence[Mapping[str, Any]]) -> str:
    """Returns what is to be done: not the same once more, if a rank ended by an error of its own."""
    own = [number for number, state in enumerate(states) if state["ended"].startswith(OWN_ERROR)]
    return f"Mend what ended {_ranks(own)} first: the same command would come to it again" if own else AGAIN


def describe_states(states: Sequence[Mapping[str, Any]]) -> str:
    """Says what all ranks are doing, with ranks that do the same named together."""
    groups: dict[str, list[int]] = {}
    for rank, state in enumerate(states):
        groups.setdefault(state["doing"], []).append(rank)
    return "; ".join(f"{_ranks(ranks)}: {doing}" for doing, ranks in groups.items())


def _ranks(numbers: Sequence[int]) -> str:
    """Lists ranks, as in "ranks 0, 1 and 2"."""
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    *most, last = map(str, numbers)
    return f"ranks {', '.join(most)} and {last}"


def short(error: Exception) -> str:
    """Returns an error's message in one line, without its middle if it is long."""
    return shortened(" ".join(str(error).split()))
