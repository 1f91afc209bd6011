"""The command line."""

from lookaround_ddp.cli.start import main

__all__ = ["main"]
