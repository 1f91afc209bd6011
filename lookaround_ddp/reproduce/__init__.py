"""Trains and makes the cells of tables: the paper's, or one's own."""

from lookaround_ddp.reproduce.dry_run import show_plan
from lookaround_ddp.reproduce.plan import make_plan
from lookaround_ddp.reproduce.run import carry_out, show_results

__all__ = ["carry_out", "make_plan", "show_plan", "show_results"]
