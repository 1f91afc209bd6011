"""How a run that has begun, or has finished, is made longer (`schedule.extend`)."""

from __future__ import annotations

from pathlib import Path

from lookaround_ddp.checkpoint import RunState, set_aside
from lookaround_ddp.config import as_extended, grown
from lookaround_ddp.errors import UserError
from lookaround_ddp.optim import learning_rate
from lookaround_ddp.training.run import Run


def extend(run: Run, state: RunState | None, finished: RunState | None) -> bool:
    """Gives a run the schedule of the one in its folder, and makes that longer, if the config asks for it. Collective.

    What a run left that had finished is kept in a folder of its own. Returns whether the run is longer now.

    Args:
        state: of the checkpoint from which the run goes on, and that `check_resumable` accepts; None if there is none.
        finished: what result.json holds; None if the run has not finished.

    Raises:
        UserError: the run has finished, and has no checkpoint of its end.
    """
    given, out = run.config, Path(run.config.out)
    made = (state or finished or {}).get("config")
    done = 0 if state is None else state["iteration"]
    config = run.config = run.record.config = as_extended(given, made, done, run.per_epoch)
    key = None if made is None else grown(made, config)
    if made is None or key is None:
        if made is None and given.schedule.extend is not None:
            run.record.say(f"schedule.extend has no effect: no run in {out} has begun")
        return False
    if finished is not None and done < finished.get("iterations", 0):
        raise UserError(
            f"{out} has finished, and its last checkpoint ({finished['iterations']}), from which a longer run goes on, "
            "is not there or is damaged: put it back, or train in another `out`"
        )
    before = run.config.model_copy(update={key: made[key]})
    kept = ""
    if finished is not None:
        with run.world.together():
            if run.world.main:
                kept = f"; what it left at its old end is in {set_aside(config, finished)}"
    rates = [learning_rate(config, each, run.per_epoch) for each in (max(0, done - 1), min(done, run.total - 1))]
    run.record.say(
        f"extended after iteration {done}, from {before.length(run.per_epoch)} to {run.total}: the learning rate goes "
        f"on from {rates[0]:.4g} at {rates[1]:.4g}{kept}"
    )
    return True
