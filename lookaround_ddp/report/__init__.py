"""Tables and curves of finished runs."""

from lookaround_ddp.report.curves import draw_curves
from lookaround_ddp.report.paper import paper_table
from lookaround_ddp.report.runs import grouped, read_run
from lookaround_ddp.report.table import results_table, show

__all__ = ["draw_curves", "grouped", "paper_table", "read_run", "results_table", "show"]
