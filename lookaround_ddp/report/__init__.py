"""Tables and curves of finished runs."""

from lookaround_ddp.report.cells import CONFIGS, HOW, cells_of, made_key, read_cells, run_key
from lookaround_ddp.report.curves import draw_curves
from lookaround_ddp.report.paper import paper_page
from lookaround_ddp.report.runs import RunRecord, grouped, held_out, judged_score, read_run, read_runs, saved_values
from lookaround_ddp.report.table import results_table, show, show_rows, write_csv

__all__ = [
    "CONFIGS",
    "HOW",
    "RunRecord",
    "cells_of",
    "draw_curves",
    "grouped",
    "held_out",
    "judged_score",
    "made_key",
    "paper_page",
    "read_cells",
    "read_run",
    "read_runs",
    "results_table",
    "run_key",
    "saved_values",
    "show",
    "show_rows",
    "write_csv",
]
