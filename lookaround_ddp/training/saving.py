"""Checkpoints in the course of a run: begun when they are due or a signal has come, whole some iterations later."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lookaround_ddp.checkpoint import BEST, LOCK, METRICS, PREEMPTED, locked
from lookaround_ddp.distributed import PreemptionHandler
from lookaround_ddp.errors import Preempted, UserError
from lookaround_ddp.files import write_atomically
from lookaround_ddp.training.rounds import share_single
from lookaround_ddp.training.run import SAVING, Run, due
from lookaround_ddp.training.state import OUTER, SHARED_TRAJECTORY, parts
from lookaround_ddp.training.validate import check_finite

PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's variable: seconds from a signal until it kills the ranks


def save_or_leave(run: Run, preemption: PreemptionHandler) -> None:
    """Begins and finishes checkpoints as they are due after this iteration, before its average step. Collective.

    Raises:
        Preempted: a rank got a signal, and all have saved.
        NotFiniteError, UserError: as `begin_checkpoint`.
    """
    leaving = None
    if run.iteration < run.total:
        over_all = run.around.due_over_all
        leaving, written = preemption.vote(run.iteration, over_all, run.world, run.checkpoints.written)
        if written:
            finish_checkpoint(run)
    if leaving or due(run, run.config.checkpoint.every):
        keep_folder(run)
        begin_checkpoint(run)
    if leaving:
        if not finish_checkpoint(run):
            raise UserError(f"{leaving.name}: left without saving, since {run.config.out} was removed meanwhile")
        raise preempted(run, leaving)


def begin_checkpoint(run: Run) -> None:
    """Begins a checkpoint of the replicas as they are before the average step of this iteration. Collective.

    Its files are written while the training goes on, until `finish_checkpoint`.

    Raises:
        NotFiniteError: a loss or a weight is not finite: nothing is written.
        UserError: the folder cannot be written, or a file of the checkpoint before.
    """
    run.world.does(f"saving after iteration {run.iteration}")
    check_finite(run)
    with run.watch.paused(SAVING):
        _begin(run)


def _begin(run: Run) -> None:
    """Copies what the checkpoint is to hold, and begins to write it."""
    share_single(run)
    state = {
        **run.around.state_dict(),
        "seconds": run.watch.elapsed,
        "total_seconds": run.watch.total(),
        "scores": run.scores,
        "best": run.best,
        "start": run.start,
        "classes": run.dataset.classes,
        "trained_on": run.dataset.trained_on,
        "config": run.config.identity(),
    }
    mine = {
        name: part
        for name, part in parts(run.replicas, run.weight_averages, run.around).items()
        if (run.world.main if name in (SHARED_TRAJECTORY, OUTER) else run.world.shard == 0)
    }
    best = Path(run.config.out) / BEST
    run.checkpoints.begin(run.iteration, mine, state, [best] if "sha256" in (run.best or {}) else [])


def finish_checkpoint(run: Run) -> bool:
    """Waits until the checkpoint that was begun last is whole, if it is not. Collective.

    Returns False if somebody has removed what was written of it.

    Raises:
        UserError: a file cannot be written.
    """
    run.world.does(f"saving after iteration {run.iteration}")
    with run.watch.paused(SAVING):
        whole = run.checkpoints.finish()
    warn_of_slow_saving(run)
    return whole


def keep_folder(run: Run) -> None:
    """Makes the run folder anew if it, or its config or record, was removed while the run trained. Collective.

    Raises:
        UserError: another training is in it by now.
    """
    folder = Path(run.config.out)
    with run.world.together():
        gone = [name for name in ("config.yaml", METRICS) if not (folder / name).exists()]
        if run.world.main and gone:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / LOCK).exists():
                run.locks.enter_context(locked(folder))
            write_atomically(folder / "config.yaml", run.config.text().encode())
            if METRICS in gone:
                run.record.reopen()
            lost = ", without the lines so far" if METRICS in gone else ""
            names = " and ".join(gone)
            run.record.say(f"warning: {names} of {folder} was removed while the run trained: made again{lost}")


def warn_of_slow_saving(run: Run) -> None:
    """Says once that torchrun may not wait long enough for a checkpoint after a signal; it does not ask the ranks."""
    patience = float(os.environ.get(PATIENCE) or 30)
    if "TORCHELASTIC_RUN_ID" in os.environ and run.checkpoints.seconds > patience / 2 and not run.warned_of_saving:
        run.warned_of_saving = True
        run.record.say(
            f"warning: a checkpoint takes {run.checkpoints.seconds:.0f} s to write, and torchrun kills ranks "
            f"{patience:.0f} s after a signal: set {PATIENCE} to more where you start it"
        )


def preempted(run: Run, number: signal.Signals) -> Preempted:
    """Leaves a file that tells a launcher: not finished and not failed, but to be gone on with. Collective."""
    error = Preempted(number, run.iteration)
    with run.world.together():
        if run.world.main:
            write_atomically(Path(run.config.out) / PREEMPTED, f"{error}\n".encode())
    return error
