"""Errors that are told to the user in one line."""

from __future__ import annotations

import difflib
import os
import signal
import traceback
from collections.abc import Iterable

FAILED, MISTAKE = 1, 2  # exit statuses; 0: done


class UserError(Exception):
    """A mistake that a user made and can mend: shown as one line, without a traceback, exit status 2."""

    everywhere = False  # every rank of the job raises it, rank 0 too


def status_of_signal(number: int) -> int:
    """Returns the exit status of what a signal ended, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number


def name_of_signal(number: int) -> str:
    """Returns the name of a signal, or that it is one without a name: a real-time signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class BatchError(Exception):
    """A batch that could not be made: by an augmentation of the user's, or since a loader worker has ended.

    An error of its own, whatever caused it: an augmentation may raise what means something else to the trainer.

    Args:
        trace: the cause's traceback, to be shown above the message; empty if it tells nothing more.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)  # with which it is unpickled
        self.message, self.trace = message, trace

    def __str__(self) -> str:
        return self.message


def told(error: BaseException) -> str:
    """Says in a short line what an error is: its type, if that is none of ours, and its message."""
    text = shortened(" ".join(str(error).split()), 400)
    return text if isinstance(error, (UserError, BatchError)) else f"{type(error).__name__}: {text}".rstrip(": ")


def trace_below(error: BaseException) -> str:
    """Returns an error's traceback without the frame that caught it; empty if that frame alone is in it."""
    below = error.__traceback__.tb_next if error.__traceback__ is not None else None
    return "".join(traceback.format_exception(type(error), error, below)) if below is not None else ""


def shortened(text: str, most: int = 200) -> str:
    """Returns a text of more than `most` characters without its middle."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}[... {len(text) - 2 * half} characters ...]{text[-half:]}"


MANY = 12  # more names in a message are not read


def nearest(name: str, known: Iterable[str], called: str = "known are") -> str:
    """Returns a question for the known name that is most like an unknown one, or some of the known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    more = f" and {len(known) - MANY} more" if len(known) > MANY else ""
    return f"{called} {', '.join(known[:MANY]) or 'none'}{more}"


def explained(error: OSError) -> str:
    """Says what went wrong with which file, without the error's number."""
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error)


class Preempted(Exception):
    """A training was told to leave, and has saved: the same command goes on with it."""

    def __init__(self, number: signal.Signals, iteration: int) -> None:
        self.number, self.iteration = number, iteration
        super().__init__(f"{number.name}: saved after iteration {iteration}; the same command goes on")


def is_main_rank() -> bool:
    """Returns whether this process is the one that speaks to the user: rank 0, or one that no launcher started."""
    return os.environ.get("RANK", "0") == "0"
