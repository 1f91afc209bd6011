"""`fit`: the paper's Algorithm 1 on any number of processes, from a config to a run folder."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from lookaround_ddp.build import along_time, build, lookaround, prepare
from lookaround_ddp.checkpoint import Checkpoints
from lookaround_ddp.config import Config, UserError, changed_keys
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.device import resolved
from lookaround_ddp.data.workers import get_ready
from lookaround_ddp.distributed import Preempted, World
from lookaround_ddp.files import write_atomically
from lookaround_ddp.lock import locked
from lookaround_ddp.outcome import RESULT, finish
from lookaround_ddp.preempt import Stop
from lookaround_ddp.record import Record
from lookaround_ddp.replica import Replica
from lookaround_ddp.run import Run
from lookaround_ddp.saved import START, State, parts
from lookaround_ddp.schedule import learning_rate
from lookaround_ddp.structure import content_digest

PREEMPTED = "PREEMPTED"  # the file in a run folder that says so


def fit(config: Config, world: World, stop: Stop) -> State:
    """Trains the config's replicas, from the newest checkpoint in `out` if there is one.

    Collective: every rank of the world calls it with the same config, in its `run_folder`. A run that has
    finished is not trained again. Returns, on every rank, what result.json holds.

    Raises:
        UserError: a mistake in the config, the data or the run folder.
        FloatingPointError: a replica is no longer finite; the last checkpoint stays.
        Preempted: a rank got a signal, and all have saved.
    """
    if config.data.workers:
        get_ready()
    dataset = prepare(config, world)
    with world.together():
        config = resolved(config, dataset)
        batches, replicas = build(config, dataset, world)
    plan = batches.plan
    total = config.epochs * plan.iterations
    around = lookaround(config, replicas, plan.iterations, world)
    trajectories = along_time(config, replicas, plan.iterations)
    record = Record(config, world.main, total)
    checkpoints = Checkpoints(Path(config.out), config.checkpoint.keep, world, record.say)
    start = {**START, "start": content_digest(replicas[0].model)}
    kept = parts(replicas, trajectories, around)
    state = checkpoints.restore(kept, lambda found: check_resumable(config, dataset, found)) or start
    with world.together():
        finished = read_result(config) if world.main else None
    finished = world.share(finished)
    if finished is not None:
        record.say(f"{config.out} has finished: give another `out` to train anew")
        return finished

    write_config(config, world)
    left = Path(config.out) / PREEMPTED
    run = Run(config, dataset, batches, replicas, around, trajectories, world, record, state)
    record.open(state["iteration"], killed=not left.exists())
    if world.main:
        left.unlink(missing_ok=True)
    record.say(describe(config, dataset, world, replicas, total))
    around.load_state_dict(state)
    try:
        if state["iteration"] > 0:
            record.say(f"resumed after iteration {state['iteration']}")
            run.advance(state["iteration"])  # a checkpoint is written before the average step of its iteration
        upcoming = range(state["iteration"], total)
        stop.begin(state["iteration"])
        for iteration, hosted in zip(upcoming, run.load(upcoming), strict=True):
            world.does(f"training iteration {iteration + 1}")
            rate = learning_rate(config, iteration, plan.iterations)
            losses = []
            for replica, own in zip(replicas, hosted, strict=True):
                pipelines = [pipeline for _, pipeline in batches.pipelines_at(iteration, replica.number)]
                losses.append(replica.step(own, pipelines, iteration, rate))
            run.losses.count(losses)
            done = iteration + 1
            if done % config.record.every == 0 or done == total:
                run.record_training(done, rate)
            if due(done, config.evaluate.every, plan.iterations) or done == total:
                run.evaluate(done)
            run.snapshot(done)
            leaving = stop.agreed(done, around.due, world) if done < total else None
            if due(done, config.checkpoint.every, plan.iterations) or done == total or leaving:
                run.save(done, checkpoints)
            if leaving:
                raise preempted(config, world, leaving, done)
            run.advance(done)
        return finish(run)
    except FloatingPointError:
        run.losses.check()  # names the very iteration, where a loss tells it
        raise
    finally:
        record.close(sys.exc_info()[1])


def preempted(config: Config, world: World, number: signal.Signals, iteration: int) -> Preempted:
    """Leaves a file that tells a launcher: not finished and not failed, but to be gone on with."""
    error = Preempted(number, iteration)
    with world.together():
        if world.main:
            write_atomically(Path(config.out) / PREEMPTED, f"{error}\n".encode())
    return error


@contextmanager
def run_folder(config: Config, world: World) -> Iterator[None]:
    """Makes the run folder; inside, no other training gets into it. Collective.

    Raises:
        UserError: it cannot be made, or another training is in it.
    """
    with ExitStack() as held:
        with world.together():
            if world.main:
                Path(config.out).mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(Path(config.out)))
        yield


def due(done: int, epochs: float, per_epoch: int) -> bool:
    """Whether something that happens every so many epochs happens after this many iterations."""
    return done % max(1, round(epochs * per_epoch)) == 0


def check_resumable(config: Config, dataset: Dataset, state: State) -> None:
    """Raises UserError if the checkpoint of this state was made with other data or another config."""
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
    made = state["config"]
    made = made | {"data": {"pipeline": "workers"} | made["data"]}  # older checkpoints say nothing of it
    if made["data"].get("on_corrupt", "error") == "error":  # so far every image was read, and nothing skipped
        made = made | {"data": made["data"] | {"on_corrupt": config.data.on_corrupt}}
    changes = list(changed_keys(made, config.identity()))
    if changes:
        raise UserError(
            f"the checkpoint in {config.out} was made with another config ({'; '.join(changes)}): "
            f"change it back, or train in another `out`"
        )


def read_result(config: Config) -> State | None:
    """What result.json of the run folder holds; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    path = Path(config.out) / RESULT
    try:
        result = json.loads(path.read_text()) if path.is_file() else None
        if result is not None and not isinstance(result, dict):
            raise ValueError("it is no result")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command writes it anew") from None
    return result


def write_config(config: Config, world: World) -> None:
    """The resolved config into the run folder."""
    with world.together():
        if world.main:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_atomically(Path(config.out) / "config.yaml", text.encode())


def describe(config: Config, dataset: Dataset, world: World, replicas: list[Replica], total: int) -> str:
    """One line on what runs where."""
    millions = sum(parameter.numel() for parameter in replicas[0].model.parameters()) / 1e6
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    kinds = "1 network" if world.replicas == 1 else f"{world.replicas} replicas, k = {config.average.k},"
    where = world.device.type if world.size == 1 else f"{world.device.type}, {world.backend}"
    return (
        f"{config.model.name}, {millions:.2f} M parameters | {config.data.name}, {len(dataset.train)} images | "
        f"{kinds} on {processes} ({where}) | {total} iterations | {config.out}"
    )
