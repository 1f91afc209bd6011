"""Errors that are told to the user in one line."""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Iterable

FAILED, MISTAKE = 1, 2  # exit statuses; 0: done


class UserError(Exception):
    """A mistake that a user made and can mend: shown as one line, without a traceback, exit status 2."""


def status_of_signal(number: int) -> int:
    """Returns the exit status of what a signal ended, as a shell has it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number


def shortened(text: str, most: int = 200) -> str:
    """Returns a text of more than `most` characters without its middle."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}[... {len(text) - 2 * half} characters ...]{text[-half:]}"


def nearest(name: str, known: Iterable[str], called: str = "known are") -> str:
    """Returns a question for the known name that is most like an unknown one, or some of the known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    more = f" and {len(known) - 15} more" if len(known) > 15 else ""
    return f"{called} {', '.join(known[:15]) or 'none'}{more}"


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
