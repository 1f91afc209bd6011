"""What the ranks of a job say to the user, once."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time

from lookaround_ddp.errors import shortened, status_of_signal

INTERRUPTED = status_of_signal(signal.SIGINT)
SPEAKS_AFTER = 3.0  # seconds, in which rank 0 mostly has ended the job
ENDED_AFTER = 20.0  # seconds, in which a launcher has ended this rank, on a busy machine too

AFTER_CTRL_C = {
    "train": "the same command goes on from the last checkpoint, if there is one",
    "reproduce": "the same command leaves out what is done, and goes on with the rest",
    "plane": "the same command goes on with the points that are done",
    "bench": "every process that was started has ended",
}


def after_interruption(options: argparse.Namespace) -> str:
    """Says what has come of a command that Ctrl-C ended, and what the same command would do."""
    what = getattr(options, "analysis", options.command)
    return AFTER_CTRL_C.get(what, "the same command begins anew")


def say_once(text: str, of_rank: bool = False, above: str = "", everywhere: bool = False) -> None:
    """Prints a line on rank 0; on another rank only if that still lives when rank 0 should have ended the job.

    One line, whatever names and values are in it.

    Args:
        of_rank: name rank 0, too, if it is not alone.
        above: is printed above it as it is, a traceback.
        everywhere: rank 0 says it, too: where a launcher ends this rank then, it may take longer, on a busy machine.
    """
    text = shortened(" ".join(text.splitlines()), 2000)
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(ENDED_AFTER if everywhere and "TORCHELASTIC_RUN_ID" in os.environ else SPEAKS_AFTER)
    if rank != "0" or (of_rank and os.environ.get("WORLD_SIZE", "1") != "1"):
        text = f"rank {rank}: {text}"
    print(f"{above}{text}", file=sys.stderr, flush=True)


def reader_left() -> bool:
    """Returns whether who read this process's standard output or standard error has gone, as `| head` does."""
    streams = select.poll()
    for descriptor in (1, 2):
        streams.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in streams.poll(0))
