"""What a run leaves when its training ends: models, their last scores, result.json."""

from __future__ import annotations

import json
from pathlib import Path

from lookaround_ddp.checkpoint import MODEL, RESULT, TRAJECTORY, State, members, members_differ
from lookaround_ddp.config import Config
from lookaround_ddp.files import write_atomically
from lookaround_ddp.optim import Swad
from lookaround_ddp.training.run import Run


def finish(run: Run) -> State:
    """The last average step; the models that are left, their scores, and result.json with them. Collective."""
    config, world = run.config, run.world
    scores = dict(run.scores)
    world.does("scoring the finished run")
    with run.shown():
        if config.average.k == "never":
            scores |= _independent(run)
        else:
            run.around.average()
            if world.replicas > 1:
                for replica in run.replicas:
                    replica.moved()
            run.observe(run.total, averaged=True)
            with run.around.averaged() as mean:
                run.recalibrate_mean(mean)
                run.keep_model(MODEL, mean)
            scores |= _along_time(run)
            if config.snapshots:
                scores |= _snapshots(run)
    result: State = {
        **scores,
        "best": run.best,
        "iterations": run.total,
        "epochs": config.epochs,
        "seconds": run.watch.seconds(),
        "processes": world.size,
        "device": str(world.device),
        "parameters": sum(parameter.numel() for parameter in run.replicas[0].model.parameters()),
    }
    with world.together():
        if world.main:
            write_atomically(Path(config.out) / RESULT, json.dumps(result, indent=1).encode())
    return result


def _independent(run: Run) -> State:
    """Replicas that were never averaged, or the averages along time of each, recalibrated each for itself."""
    config, models = run.config, [replica.model for replica in run.replicas]
    if run.trajectories:
        _warn_unconverged(run)
        models = [run.along_time(trajectory) for trajectory in run.trajectories]
    if _measured_anew(config):
        run.recalibrate(models, apart=True)
    with run.world.together():
        for number, model in zip(run.world.hosted, models, strict=True):
            if run.world.shard == 0:
                run.write_model(f"members/{number}.safetensors", model)
    scores: State = {"members": run.test.replicas(models)} if members_differ(config) else {}
    if run.world.replicas > 1:
        scores["ensemble"] = run.test.ensemble_of_replicas(models)
        if run.validation is not None:
            scores["ensemble_validation"] = run.validation.ensemble_of_replicas(models)
    return scores


def _along_time(run: Run) -> State:
    """The average along time of the mean model."""
    if not run.trajectories:
        return {}
    _warn_unconverged(run)
    model = run.along_time(run.trajectories[0])
    if _measured_anew(run.config):
        run.recalibrate([model] * len(run.replicas))
    run.keep_model(TRAJECTORY, model)
    scores: State = {"trajectory": run.test.shared(model)}
    if run.validation is not None:
        scores["trajectory_validation"] = run.validation.shared(model)
    return scores


def _measured_anew(config: Config) -> bool:
    """Snapshots have no statistics of their mean; EMA averages them along with the weights."""
    return config.trajectory.name in ("swa", "swad") or config.evaluate.recalibrate


def _snapshots(run: Run) -> State:
    with run.world.together():
        models = list(members(run.config, run.world.device))
    scores: State = {"members": [run.test.shared(model) for model in models], "ensemble": run.test.ensemble(models)}
    if run.validation is not None:
        scores["ensemble_validation"] = run.validation.ensemble(models)
    return scores


def _warn_unconverged(run: Run) -> None:
    average = run.trajectories[0].average
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
