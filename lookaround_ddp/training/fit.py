"""`fit`: the paper's Algorithm 1 on any number of processes, from a config to a run folder."""

from __future__ import annotations

import sys
from pathlib import Path

from lookaround_ddp.averaging import NotFiniteError
from lookaround_ddp.checkpoint import PREEMPTED, RunState, write_config
from lookaround_ddp.config import Config, k_text
from lookaround_ddp.data import get_ready
from lookaround_ddp.distributed import PreemptionHandler, World, lost_connection
from lookaround_ddp.optim import ends_cycle, learning_rate
from lookaround_ddp.training.results import finish, save_snapshot
from lookaround_ddp.training.rounds import average, training_line, unreached
from lookaround_ddp.training.run import Run, due, load_batches
from lookaround_ddp.training.saving import finish_checkpoint, keep_folder, save_or_leave
from lookaround_ddp.training.setup import set_up
from lookaround_ddp.training.state import restore
from lookaround_ddp.training.trial import TRIED, as_mistake
from lookaround_ddp.training.validate import validate


def fit(config: Config, world: World, preemption: PreemptionHandler) -> RunState:
    """Trains the config's replicas, from the newest checkpoint in `out` if there is one.

    Collective: every rank of the world calls it with the same config, in its `run_folder`. A run that has
    finished is not trained again. Returns, on every rank, what result.json holds.

    Raises:
        UserError: a mistake in the config, the data or the run folder.
        NotFiniteError: a replica is no longer finite; the last checkpoint stays.
        Preempted: a rank got a signal, and all have saved.
    """
    if config.data.workers:
        get_ready()
    run = set_up(config, world)
    if (finished := restore(run)) is not None:
        write_config(run.config, world)
        run.record.say(f"{config.out} has finished: give another `out` to train anew")
        return finished
    begin(run)
    config, first = run.config, run.iteration  # its `data.pipeline` and `record.every` are resolved
    every = config.record.period(run.per_epoch)
    try:
        if run.iteration > 0:
            average(run)  # a checkpoint is written before the average step of its iteration
        upcoming = range(run.iteration, run.total)
        preemption.start(run.iteration)
        for iteration, batches in zip(upcoming, load_batches(run, upcoming), strict=True):
            world.does(f"training iteration {iteration + 1}")
            rate = learning_rate(config, iteration, run.per_epoch)
            losses = [replica.step(own, iteration, rate) for replica, own in zip(run.replicas, batches, strict=True)]
            run.losses.count(losses)
            run.iteration = iteration + 1
            run.record.advance(run.iteration, run.iteration / run.per_epoch, rate, losses)
            if run.iteration % every == 0 or run.iteration == run.total:
                run.record.train(training_line(run, rate))
            if due(run, config.evaluate.every):
                validate(run)
            if config.snapshots and ends_cycle(config.schedule, run.iteration, run.total):
                save_snapshot(run)
            save_or_leave(run, preemption)
            average(run)
        finish_checkpoint(run)
        keep_folder(run)
        return finish(run)
    except NotFiniteError:  # found by all ranks together
        finish_checkpoint(run)
        run.losses.check()  # names the very iteration, where a loss tells it
        raise
    except TRIED as error:
        if run.iteration > first + 1 or lost_connection(error):
            raise
        raise as_mistake(error, config, run.dataset) from error
    finally:
        run.checkpoints.give_up()
        run.locks.close()
        run.record.close(sys.exc_info()[1])


def begin(run: Run) -> None:
    """Writes the config, opens the record, and says what is trained where. Collective."""
    write_config(run.config, run.world)
    run.record.open(run.iteration)
    if run.world.main:
        (Path(run.config.out) / PREEMPTED).unlink(missing_ok=True)
    run.record.say(describe_run(run))
    for warning in unreached(run):
        run.record.say(f"warning: {warning}")
    if run.config.average.hide:
        run.record.say("average.hide has no effect any more: the average step is waited for, see average.delay")
    if run.iteration > 0:
        run.record.say(f"resumed after iteration {run.iteration}")


def describe_run(run: Run) -> str:
    """Returns one line on what runs where."""
    config, world = run.config, run.world
    millions = sum(parameter.numel() for parameter in run.replicas[0].model.parameters()) / 1e6
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    kinds = "1 network" if world.replicas == 1 else f"{world.replicas} replicas, k = {k_text(config.average.k)},"
    if (nodes := config.average.nodes) is not None:
        kinds += f" in nodes of {nodes.size}, k = {nodes.k} over all,"
    if (outer := config.average.outer) is not None:
        nesterov = " (nesterov)" if outer.nesterov else ""
        kinds += f" outer lr {outer.lr:g}, momentum {outer.momentum:g}{nesterov},"
    where = world.device.type if world.size == 1 else f"{world.device.type}, {world.backend}"
    return (
        f"{config.model.name}, {millions:.2f} M parameters | {config.data.name}, {len(run.dataset.train)} images | "
        f"{kinds} on {processes} ({where}) | {run.total} iterations | {config.out}"
    )
