"""The scores of runs as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
            table.add_row(Text(f"{run.name}: not finished"), *["-"] * 4)
            continue
        alone = len(run.config.replicas) == 1
        table.add_row(Text(run.name), style="italic")
        replicas = result.get("replicas") or []
        own = [", ".join(map(augmentation_name, entries)) for entries in run.config.replicas]
        seconds = f"{result['seconds']:.0f}"
        for number, score in enumerate([] if alone else replicas):
            last = number == len(replicas) - 1 and "mean" not in result  # replicas that were never averaged
            table.add_row(_indented(f"replica {number}: {own[number]}"), *_scores(score), seconds if last else "")
        score = result.get("mean", replicas[0] if alone and replicas else None)
        if score is not None:
            name = f"single network: {own[0]}" if alone else "mean model"
            table.add_row(_indented(name), *_scores(score), seconds, style="bold")
        best = result.get("best")
        if best and best["iteration"] < result["iterations"]:
            label = f"best epoch, {best['epoch']:.4g}, by {best['selected_by']} set"
            table.add_row(_indented(label), *_scores(best["mean"]), "", style="dim")
        table.add_section()
    return table


def augmentation_name(entry: Augmentation) -> str:
    return entry if isinstance(entry, str) else "+".join(entry)


def _indented(name: str) -> Padding:
    """Of a row that belongs to the run above it; plain text, since a name in [brackets] is no markup."""
    return Padding(Text(name), (0, 0, 0, 2))


def _scores(score: dict[str, Any]) -> tuple[str, str, str]:
    top5 = f"{score['top5']:.2f}" if "top5" in score else "-"
    return f"{score['top1']:.2f}", top5, f"{score['nll']:.4f}"
