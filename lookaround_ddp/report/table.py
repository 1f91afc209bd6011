"""The scores of runs as Markdown tables."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lookaround_ddp.config import Augmentation
from lookaround_ddp.errors import UserError
from lookaround_ddp.files import write_atomically
from lookaround_ddp.report.runs import Group, RunRecord, judged_score

ScoreOfRun = Mapping[str, float]


DECIMALS = {"top1": 2, "top5": 2, "nll": 4}  # of each metric of a score


HEADINGS = ("top-1 %", "top-5 %", "NLL")


TIMES = ("seconds", "total_seconds")  # of training alone, and with evaluating and saving


SECONDS_HEADING = "seconds"  # of the whole training: with evaluating and saving


def results_table(groups: Sequence[Group], brief: bool = False) -> Table:
    """Makes a table of each group's test scores at the last epoch: top-1 and top-5 in percent, NLL in nats.

    A group has rows for its replicas, members, mean model, average along time and ensemble, of which the one
    that its method is judged by is bold; with `brief` it has that row alone. Several seeds give mean ± standard
    error and their number, and the mean of the seconds that they took, evaluating and saving included. A single run's
    best epoch, if it was an earlier one, has a row of its own that says what it was selected by.
    """
    table = markdown_table("network", *HEADINGS, "n", SECONDS_HEADING)
    for group in groups:
        done = group.finished
        if not brief and done:
            table.add_row(plain(f"`{group.name}`"))
        rows: dict[str, list[ScoreOfRun]] = {}
        for run in done:
            for label, score in _rows_of_run(run, several=len(done) > 1):
                rows.setdefault(label, []).append(score)
        ours = {label for label, _ in filter(None, map(judged_score, done))}
        seconds = _mean_seconds([run.result for run in done if run.result])
        for label, scores in rows.items():
            judged = any(label.partition(":")[0] == each for each in ours)
            if brief and not judged:
                continue
            name = f"`{group.name}`: {label.partition(':')[0]}" if brief else label
            cells = [name, *score_cells(scores), str(len(scores)), seconds if judged else ""]
            table.add_row(*(plain(f"**{cell}**" if judged and cell and not brief else cell) for cell in cells))
        for run in group.runs:
            if run.result is None:
                table.add_row(plain(f"`{run.name}`: not finished"), *[plain("-")] * 5)
    return table


def _mean_seconds(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the mean of what the runs took in all; or of their training alone, and says so, where one has no more."""
    if not results:
        return ""
    if all("total_seconds" in result for result in results):
        return f"{statistics.fmean(result['total_seconds'] for result in results):.0f}"
    return f"{statistics.fmean(result['seconds'] for result in results):.0f} (training alone)"


def markdown_table(*headings: str, text: int = 1) -> Table:
    """Makes an empty table that prints as Markdown: the first `text` columns on the left, figures on the right."""
    table = Table(box=box.MARKDOWN)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < text else "right", no_wrap=True)
    return table


def show(table: Table) -> None:
    """Prints a table."""
    print(*lines_of(table), sep="\n")


def show_rows(headings: Sequence[str], rows: Iterable[Sequence[str]], text: int) -> None:
    """Prints a table of these cells, the first `text` columns of which are words."""
    table = markdown_table(*headings, text=text)
    for row in rows:
        table.add_row(*map(plain, row))
    show(table)


def lines_of(table: Table) -> list[str]:
    """Returns a table's lines, whole, however narrow the terminal: a wrapped line would be no Markdown."""
    text = io.StringIO()
    Console(file=text, width=1000, color_system=None).print(table)
    return [line for line in text.getvalue().splitlines() if line.strip()]


def plain(cell: str) -> Text:
    """Escapes a cell: a name in [brackets] is no markup, and a bar does not end the cell."""
    return Text(cell.replace("|", "\\|"))


def score_cells(scores: Sequence[ScoreOfRun]) -> list[str]:
    """Formats top-1, top-5 and NLL of runs: the value of one, mean ± standard error of several, a dash for none."""
    return [
        estimate([score[metric] for score in scores if metric in score], decimals)
        for metric, decimals in DECIMALS.items()
    ]


def estimate(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{decimals}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{decimals}f}"


def augmentation_name(entry: Augmentation) -> str:
    return entry if isinstance(entry, str) else "+".join(entry)


def write_csv(groups: Sequence[Group], path: Path) -> None:
    """Writes the test scores of every model of every finished run: a line each, with numbers as they are.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "run", "seed", "network", "judged", *DECIMALS, "iterations", "epochs", *TIMES])
    for group in groups:
        for run in group.finished:
            result: dict[str, Any] = run.result or {}
            ours = judged_score(run)
            rest = [result.get(key) for key in ("iterations", "epochs", *TIMES)]
            for label, score in _rows_of_run(run, several=False):
                judged = ours is not None and label.partition(":")[0] == ours[0]
                scores = [score.get(metric) for metric in DECIMALS]
                writer.writerow([group.name, run.name, run.config.seed, label, int(judged), *scores, *rest])
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _rows_of_run(run: RunRecord, several: bool) -> Iterator[tuple[str, ScoreOfRun]]:
    """Yields a name and a score for each model that a finished run has left."""
    result: dict[str, Any] = run.result or {}
    own = [", ".join(map(augmentation_name, entries)) for entries in run.config.replicas]
    replicas, members = result.get("replicas") or [], result.get("members") or []
    along = f"average along time ({run.config.trajectory.name})"
    if run.winner:
        yield f"best of {len(run.of)}{'' if several else ': ' + run.winner['name']}", result["mean"]
    elif run.soup:
        yield f"soup of {len(run.soup)}", result["mean"]
    elif run.alone:
        score = result.get("mean", replicas[0] if replicas else None)
        if score is not None:
            yield f"single network: {own[0]}", score
    else:
        for number, score in enumerate(replicas):
            yield f"replica {number}: {own[number]}", score
        if "mean" in result:
            yield "mean model", result["mean"]
    if "trajectory" in result:
        yield along, result["trajectory"]
    if run.of:  # an ensemble of other runs
        yield from ((f"member {number}", score) for number, score in enumerate(members))
    elif run.alone and members and not run.config.snapshots:  # never averaged, and averaged along time
        yield along, members[0]
    else:
        for number, score in enumerate(members):
            yield f"{'snapshot' if run.config.snapshots else 'member'} {number}", score
    for kind, score in result.get("ensemble", {}).items():
        yield f"ensemble, mean of {kind}", score
    best = result.get("best")
    if best and (several or best["iteration"] < result["iterations"]):
        epoch = "" if several else f", {best['epoch']:.4g}"
        yield f"best epoch{epoch}, by {best['selected_by']} set", best["mean"]
