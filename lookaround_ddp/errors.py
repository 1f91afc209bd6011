"""Errors that are told to the user in one line."""

from __future__ import annotations

import os
import signal

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
