"""Carries a plan out: trainings first, then what is made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lookaround_ddp.checkpoint import RESULT
from lookaround_ddp.config import Config
from lookaround_ddp.errors import MISTAKE, UserError
from lookaround_ddp.report import grouped, paper_page, read_run, results_table, show
from lookaround_ddp.reproduce import children
from lookaround_ddp.reproduce.plan import Making, Plan
from lookaround_ddp.reproduce.winner import write_winner


def carry_out(
    plan: Plan,
    train: Callable[[Sequence[str]], int] = children.start_training,
    score: Callable[[Config, Sequence[str]], int] = children.score,
) -> list[str]:
    """Trains and makes what has not finished, and returns the folders of what failed.

    Of several nodes, which train together, the first alone makes what is made of the trainings.

    Args:
        train: runs `train` with these arguments, and returns its exit status.
        score: runs a command that scores runs, the first of which has this config.

    Raises:
        SystemExit: a training refused to start for a mistake, which the others would share; it has said which.
    """
    failed = []
    for training in plan.trainings.values():
        if training.finished:
            continue
        _say(f"== {training.name}")
        status = train(training.arguments)
        if status == MISTAKE:
            sys.exit(MISTAKE)
        if status != 0 or not training.finished:
            failed.append(str(training.run))
    for making in plan.makings.values() if first_node() else ():
        missing = [each.name for each in making.of if not each.finished]
        if making.finished:
            continue
        if missing:
            _say(f"left out: {making.name}, since {missing[0]} has not finished")
            continue
        _say(f"== {making.name}: {making.kind} of {len(making.of)}")
        if not make(making, plan.overrides, score):
            failed.append(str(making.run))
    return failed


def make(making: Making, overrides: Sequence[str], score: Callable[[Config, Sequence[str]], int]) -> bool:
    """Makes what a recipe describes, or selects a sweep's winner; returns whether it could."""
    recipe = making.recipe
    if recipe is None or recipe.recipe == "best":
        try:
            _say(write_winner(making))
        except UserError as error:
            _say(f"error: {error}")
        return making.finished
    options = ["--out", str(making.run)]
    if recipe.recipe == "soup":
        options += ["--recipe", recipe.select]
    if recipe.update_bn:
        options += ["--update-bn"]
        overrides = [*overrides, "evaluate.recalibrate_iterations=null"]
    if recipe.update_bn or any(each.config.own_code() for each in making.of):
        options += ["--trust"]  # the cells, whose code it may be, were named to be trained
    runs = [str(each.run) for each in making.of]
    return score(making.of[0].config, [recipe.recipe, *runs, *options, *overrides]) == 0 and making.finished


def show_results(plan: Plan) -> None:
    """Prints each table beside the runs that have finished, and the scores of the cells that are no table's."""
    for table, runs in plan.tables.items() if first_node() else ():
        groups = grouped([read_run(run) for run in runs if (run / RESULT).is_file()])
        if table:
            print(paper_page(table, groups))
        else:
            show(results_table(groups, brief=True))


def first_node() -> bool:
    """Returns whether this machine is the one that speaks, of several that train together."""
    return os.environ.get("NODE_RANK", "0") == "0"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
