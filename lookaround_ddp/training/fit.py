"""`fit`: the paper's Algorithm 1 on any number of processes, from a config to a run folder."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from lookaround_ddp.averaging import content_digest
from lookaround_ddp.checkpoint import PREEMPTED, Checkpoints, State, read_result, write_config
from lookaround_ddp.config import Config
from lookaround_ddp.data import Dataset, get_ready, prepare
from lookaround_ddp.data.device import resolved
from lookaround_ddp.distributed import Stop, World
from lookaround_ddp.errors import Preempted
from lookaround_ddp.files import write_atomically
from lookaround_ddp.optim import learning_rate
from lookaround_ddp.training.record import Record
from lookaround_ddp.training.replica import Replica
from lookaround_ddp.training.results import finish
from lookaround_ddp.training.run import START, Run
from lookaround_ddp.training.setup import along_time, build, lookaround
from lookaround_ddp.training.state import check_resumable, parts


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
    record.open(state["iteration"])
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


def due(done: int, epochs: float, per_epoch: int) -> bool:
    """Whether something that happens every so many epochs happens after this many iterations."""
    return done % max(1, round(epochs * per_epoch)) == 0


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
