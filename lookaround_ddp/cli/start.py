"""From the words of a command line to its command.

A command, and torch with it, is imported once the words are known to be right: help and a mistake in them take a
fraction of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lookaround_ddp.cli.parser import parse_command
from lookaround_ddp.cli.say import INTERRUPTED, after_interruption, say_once
from lookaround_ddp.errors import MISTAKE, UserError, is_main_rank


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line from one rank, and exit status 2."""
    try:
        options = parse_command(arguments)
    except UserError as error:
        say_once(f"error: {error}")
        sys.exit(MISTAKE)
    try:
        from lookaround_ddp.cli.commands import run

        run(options)
    except KeyboardInterrupt:
        if is_main_rank():  # a terminal's Ctrl-C reaches every rank
            print(f"interrupted: {after_interruption(options)}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
