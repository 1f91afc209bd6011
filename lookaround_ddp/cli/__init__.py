from lookaround_ddp.cli.commands import main

__all__ = ["main"]
