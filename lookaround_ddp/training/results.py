"""What a run leaves when it ends, or when one of its cycles does: models, their scores, result.json."""

from __future__ import annotations

from pathlib import Path

from lookaround_ddp.checkpoint import MODEL, TRAJECTORY, RunState, write_result
from lookaround_ddp.config import Config
from lookaround_ddp.evaluation import score_run
from lookaround_ddp.optim import Swad
from lookaround_ddp.training.model_files import save_shared_model, write_model
from lookaround_ddp.training.record import FINAL
from lookaround_ddp.training.rounds import share_single, update_weight_averages
from lookaround_ddp.training.run import Run, evaluation_weights
from lookaround_ddp.training.validate import averaged_model, recalibrate_mean, recalibrate_models


def finish(run: Run) -> RunState:
    """Makes the last average step, saves the models, scores them, and writes result.json. Collective.

    Returns what result.json holds.
    """
    config, world = run.config, run.world
    world.does("scoring the finished run")
    with evaluation_weights(run):
        if config.average.k == "never":
            _save_members(run)
        else:
            run.around.average()
            if world.replicas > 1:
                for replica in run.replicas:
                    replica.restart_lookahead()
            update_weight_averages(run, averaged=True)
            with run.around.averaged() as mean:
                recalibrate_mean(run, mean)
                save_shared_model(run, MODEL, mean)
            _save_weight_average(run)
    known = {name: score for name, score in run.scores.items() if name in ("mean", "validation", "replicas")}
    scores = score_run(Path(config.out), config, run.dataset, (run.test, run.validation), world, known)
    scores["best"] = run.best
    run.record.final({"iteration": run.total, "epoch": run.total / run.per_epoch, FINAL: scores})
    result: RunState = {
        **scores,
        "iterations": run.total,
        "epochs": config.epochs if config.iterations is None else run.total / run.per_epoch,
        "seconds": run.watch.seconds(),
        "total_seconds": run.watch.total(),
        "processes": world.size,
        "device": str(world.device),
        "parameters": sum(parameter.numel() for parameter in run.replicas[0].model.parameters()),
    }
    with world.together():
        if world.main:
            result = write_result(config, result)
    return world.share(result)


def save_snapshot(run: Run) -> None:
    """Saves the mean model where one of the schedule's cycles ends (a snapshot ensemble's member). Collective."""
    cycle = run.iteration * run.config.schedule.cycles // run.total
    with run.watch.paused("keeping a snapshot"):
        share_single(run)
        with evaluation_weights(run), run.around.averaged() as mean:
            recalibrate_mean(run, mean)
            save_shared_model(run, f"snapshots/{cycle}.safetensors", mean)


def _save_members(run: Run) -> None:
    """Saves replicas that were never averaged, or SWA's, SWAD's or EMA's model of each, recalibrated for itself."""
    config, models = run.config, [replica.model for replica in run.replicas]
    if run.weight_averages:
        _warn_unconverged(run)
        models = [averaged_model(run, average) for average in run.weight_averages]
    if _needs_statistics(config):
        recalibrate_models(run, models, apart=True)
    with run.world.together():
        for number, model in zip(run.world.hosted, models, strict=True):
            if run.world.shard == 0:
                write_model(run, f"members/{number}.safetensors", model)


def _save_weight_average(run: Run) -> None:
    """Saves SWA's, SWAD's or EMA's model of the mean model, if the run has one."""
    if not run.weight_averages:
        return
    _warn_unconverged(run)
    model = averaged_model(run, run.weight_averages[0])
    if _needs_statistics(run.config):
        recalibrate_models(run, [model] * len(run.replicas))
    save_shared_model(run, TRAJECTORY, model)


def _needs_statistics(config: Config) -> bool:
    """Returns whether batch-norm is to be measured anew: SWA and SWAD have no statistics of their mean, EMA has."""
    return config.trajectory.name in ("swa", "swad") or config.evaluate.recalibrate


def _warn_unconverged(run: Run) -> None:
    """Says which validations SWAD's valley spans, or warns that it found none."""
    average = run.weight_averages[0].average
    if isinstance(average, Swad):
        losses = f"{len(average.losses)} validation losses"
        if average.start is None:
            run.record.say(
                f"warning: swad found no start of a valley in {losses}: the average is of the last "
                f"{run.config.trajectory.n_converge} segments; validate more often (trajectory.every) or train longer"
            )
        else:
            run.record.say(
                f"swad: {losses}, a valley from number {average.start} to {average.end} below "
                f"{average.threshold:.4f}, counted from 0"
            )
