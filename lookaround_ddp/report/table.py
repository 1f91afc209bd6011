"""The scores of runs as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lookaround_ddp.config import Augmentation
from lookaround_ddp.report.runs import RunRecord


def results_table(runs: Sequence[RunRecord]) -> Table:
    """A row for each replica and for the mean model of each run: top-1 in percent, NLL in nats, seconds.

    Figures are the last epoch's. A run's best epoch, if it was an earlier one, has a row of its own that
    says what it was selected by.
    """
    table = Table(title="Test set, last epoch")
    for heading in ("network", "top-1 %", "top-5 %", "NLL", "seconds"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for run in runs:
        result = run.result
        if result is None:
            table.add_row(f"{run.name}: not finished", *["-"] * 4)
            continue
        alone = len(run.config.replicas) == 1
        table.add_row(run.name, style="italic")
        for number, score in enumerate(result.get("replicas") or []):
            if not alone:
                own = ", ".join(augmentation_name(entry) for entry in run.config.replicas[number])
                table.add_row(f"  replica {number}: {own}", *_scores(score), "")
        if "mean" in result:
            own = ", ".join(augmentation_name(entry) for entry in run.config.replicas[0])
            name = f"single network: {own}" if alone else "mean model"
            table.add_row("  " + name, *_scores(result["mean"]), f"{result['seconds']:.0f}", style="bold")
        best = result.get("best")
        if best and best["iteration"] < result["iterations"]:
            label = f"  best epoch, {best['epoch']:.4g}, by the {best['selected_by']} set"
            table.add_row(label, *_scores(best["mean"]), "", style="dim")
        table.add_section()
    return table


def augmentation_name(entry: Augmentation) -> str:
    return entry if isinstance(entry, str) else "+".join(entry)


def _scores(score: dict[str, Any]) -> tuple[str, str, str]:
    top5 = f"{score['top5']:.2f}" if "top5" in score else "-"
    return f"{score['top1']:.2f}", top5, f"{score['nll']:.4f}"
