"""What a plan would do, as a table."""

from __future__ import annotations

import os

from lookaround_ddp.distributed import processes_here
from lookaround_ddp.distributed.environment import number_in
from lookaround_ddp.report import show_rows
from lookaround_ddp.reproduce.estimate import done, iterations
from lookaround_ddp.reproduce.plan import Plan, Training


def show_plan(plan: Plan) -> None:
    """Prints what would be trained and made, on how many processes, in how many iterations, and what is there."""
    trainings, makings = list(plan.trainings.values()), list(plan.makings.values())
    rows = [_training_row(training) for training in trainings]
    for making in makings:
        state = "done" if making.finished else "to do"
        rows.append([str(making.run), f"{making.kind} of {len(making.of)}", *["-"] * 3, state])
    rows += ([name, "quoted", *["-"] * 4] for name in plan.quoted)
    show_rows(["run", "what", "processes", "replicas", "iterations", "state"], rows, text=2)
    left = [_left(training) for training in trainings]
    finished, begun = (sum(map(is_so, trainings)) for is_so in (lambda each: each.finished, _begun))
    unknown = f", and those of {left.count(None)} whose images are not here" if None in left else ""
    print(
        f"\n{len(trainings)} trainings: {finished} done, {begun} begun, {len(trainings) - finished - begun} to do, "
        f"{sum(each or 0 for each in left):,} iterations{unknown}. To be made of runs: "
        f"{sum(not making.finished for making in makings)}."
    )


def _training_row(training: Training) -> list[str]:
    total = iterations(training.config)
    state = "done" if training.finished else f"begun: {done(training.run):,}" if _begun(training) else "to do"
    return [
        str(training.run),
        "point" if training.point else "training",
        str(process_count(training)),
        str(len(training.config.replicas)),
        "?" if total is None else f"{total:,}",
        state,
    ]


def process_count(training: Training) -> int:
    """Returns how many processes the launcher would start for a training, on all nodes."""
    nodes = number_in(os.environ, "NNODES", "1")
    return nodes * processes_here(training.config, nodes)


def _left(training: Training) -> int | None:
    """Returns the iterations that are left; None if nobody knows how many the run has."""
    total = iterations(training.config)
    return 0 if training.finished else None if total is None else total - done(training.run)


def _begun(training: Training) -> bool:
    return not training.finished and (training.run / "config.yaml").is_file()
