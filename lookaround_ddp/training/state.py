"""What a checkpoint holds of a run, and how a run goes on from one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.checkpoint import Part, RunState, missing_files, read_result
from lookaround_ddp.config import Config, at_length_of, changed_keys, check_extension, grown
from lookaround_ddp.data import Dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.optim import Trajectory
from lookaround_ddp.training.extend import extend
from lookaround_ddp.training.model_files import restore_best
from lookaround_ddp.training.progress import Losses, Stopwatch
from lookaround_ddp.training.replica import Replica
from lookaround_ddp.training.rounds import begin_rounds
from lookaround_ddp.training.run import Run

SHARED_TRAJECTORY, OUTER = "trajectory.pt", "outer.pt"  # the same on all ranks: the first writes them


def restore(run: Run) -> RunState | None:
    """Puts a run where its newest whole checkpoint left it; without one it stays at its start. Collective.

    Returns what result.json holds if the run has finished and its files are there, else None.

    Raises:
        UserError: the checkpoint is of another config or other data, or all are damaged; result.json is.
    """
    config, world = run.config, run.world
    kept = parts(run.replicas, run.weight_averages, run.around)
    state = run.checkpoints.restore(kept, lambda found: check_resumable(config, run.dataset, found))
    with world.together():
        finished = read_result(Path(config.out)) if world.main else None
    finished = world.share(finished)
    if state is None and finished is not None and "config" in finished:
        check_config(config, finished["config"], f"the run in {config.out} was trained")
    if extend(run, state, finished):
        finished = None
    with world.together():
        if world.main and finished is not None and (gone := missing_files(Path(config.out), finished)):
            run.record.say(
                f"{config.out} has finished, and lost {', '.join(gone)}: made again, and result.json with it"
            )
            finished = None
    finished = world.share(finished)
    if finished is not None:
        return finished
    if state is not None:
        run.iteration = run.first = state["iteration"]
        run.start = state["start"]
        run.scores, run.best = state["scores"], state["best"]
        run.losses = Losses(config, run.batches, world, counted=run.iteration)
        run.watch = Stopwatch(state["seconds"], state.get("total_seconds", state["seconds"]))
        run.last_logged = (run.iteration, run.watch.seconds())
        run.last_checked_epoch = run.iteration // run.per_epoch
        run.around.load_state_dict(state)
    restore_best(run)
    if run.iteration > run.single_phase_end or run.single_phase_end == 0:
        begin_rounds(run)
    return None


class WithCorrection:
    """A replica and the correction that is on its way to it (average.delay), in one file."""

    def __init__(self, replica: Replica, hosted: int, around: Lookaround) -> None:
        self.replica, self.hosted, self.corrections = replica, hosted, around.corrections

    def state_dict(self) -> RunState:
        return {**self.replica.state_dict(), "correction": self.corrections.of(self.hosted)}

    def load_state_dict(self, state: RunState) -> None:
        self.replica.load_state_dict(state)
        self.corrections.restore(self.hosted, state["correction"])


def parts(replicas: Sequence[Replica], weight_averages: Sequence[Trajectory], around: Lookaround) -> Mapping[str, Part]:
    """Returns what a checkpoint keeps of what this rank holds, by the name of its file."""
    named: dict[str, Part] = {
        f"replica-{replica.number}.pt": WithCorrection(replica, hosted, around) if around.delay else replica
        for hosted, replica in enumerate(replicas)
    }
    if around.outer is not None:
        named[OUTER] = around.outer
    if len(weight_averages) == 1 and not weight_averages[0].own:
        return named | {SHARED_TRAJECTORY: weight_averages[0]}
    own = {f"trajectory-{r.number}.pt": t for r, t in zip(replicas, weight_averages, strict=False)}
    return named | own


def with_later_keys(made: RunState, defaults: RunState) -> RunState:
    """Returns an older checkpoint's config with the defaults of the keys that came later, which leave all as it was."""
    kept = {key: value for key, value in defaults.items() if key not in ("epochs", *made)}  # of the length it has one
    below = {
        key: with_later_keys(value, defaults[key])
        for key, value in made.items()
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
    }
    return kept | made | below


def check_resumable(config: Config, dataset: Dataset, state: RunState, longer: bool = False) -> None:
    """Raises UserError if the checkpoint of this state was made with other data or another config.

    Args:
        longer: the config may be of a longer run, as it may be with `schedule.extend`.
    """
    if state["classes"] != dataset.classes:
        raise UserError(
            f"the checkpoint in {config.out} has {state['classes']} classes, the data has {dataset.classes}: "
            f"train in another `out`"
        )
    if state.get("trained_on", dataset.trained_on) != dataset.trained_on:
        raise UserError(
            f"the checkpoint in {config.out} was trained on {state['trained_on']}, the data has {dataset.trained_on}: "
            f"put back what is missing, or train in another `out`"
        )
    check_config(config, state["config"], f"the checkpoint in {config.out} was made", longer)


def check_config(config: Config, made: RunState, what: str, longer: bool = False) -> None:
    """Raises UserError if a config is another than that of these values, which `what` was done with."""
    made = made | {"data": {"pipeline": "workers"} | made["data"]}  # older checkpoints say nothing of it
    made["data"].pop("on_corrupt", None)  # and this of what no longer matters
    made, wanted = with_later_keys(made, Config().identity()), config.identity()
    if not config.schedule.spans:  # the run has its own, if it was extended
        wanted["schedule"]["spans"] = made["schedule"]["spans"]
    if grows := grown(made, config) is not None:
        if config.schedule.extend is not None:
            check_extension(config)
        if longer or config.schedule.extend is not None:
            made = at_length_of(made, wanted)
    changes = list(changed_keys(made, wanted))
    if changes:
        only = grows and not list(changed_keys(at_length_of(made, wanted), wanted))
        mend = "make it longer with schedule.extend=stretch or hold, or " if only else "or "
        raise UserError(
            f"{what} with another config ({'; '.join(changes)}): change it back, {mend}train in another `out`"
        )
