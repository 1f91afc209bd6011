"""What a config would train: how long, how large, on how many processes; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lookaround_ddp.config import Config, k_text
from lookaround_ddp.distributed import World, processes_here
from lookaround_ddp.optim import learning_rate
from lookaround_ddp.training.display import duration
from lookaround_ddp.training.run import Run, load_batches
from lookaround_ddp.training.setup import set_up

TIMED_SECONDS = 10.0  # at most so long iterations are timed, after a first one
TIMED = 6


def facts(config: Config, world: World) -> Iterator[str]:
    """Yields lines on a run of this config on this machine; the last is an estimate from a few of its iterations.

    Args:
        world: of one process and one replica, on the device that would train.

    Raises:
        UserError: what a training would refuse.
    """
    replicas, processes = len(config.replicas), processes_here(config)
    run = set_up(of_one_replica(config), world)
    parameters = sum(each.numel() for each in run.replicas[0].model.parameters())
    yield f"{config.model.name}: {parameters:,} parameters, {run.dataset.classes} classes"
    data = run.dataset
    held_out = "" if data.validation is None else f", {len(data.validation):,} held out"
    yield f"{config.data.name}: {len(data.train):,} training images{held_out}, {len(data.test):,} test images"
    rounds = "never averaged" if config.average.k == "never" else f"k = {k_text(config.average.k)}"
    what = "1 network" if replicas == 1 else f"{replicas} replicas, {rounds}"
    yield f"{what}, on {processes} {'process' if processes == 1 else 'processes'} of this machine ({world.device.type})"
    yield f"{run.total:,} iterations, {run.per_epoch:,} in an epoch; {config.data.batch_size} images for each replica"
    hosted = -(-replicas // processes)
    seconds = seconds_of_iteration(run) * hosted * run.total
    yield f"about {duration(seconds)} of training, estimated from a few iterations of one replica; scoring comes on top"


def of_one_replica(config: Config) -> Config:
    """Returns the config with its first replica alone, which has nothing to be averaged with."""
    average = config.average.model_copy(update={"nodes": None})
    return config.model_copy(update={"replicas": config.replicas[:1], "average": average})


def seconds_of_iteration(run: Run) -> float:
    """Returns how long an iteration of the hosted replica takes: the mean of a few, after a first one."""
    times = [time.perf_counter()]
    for iteration, (own,) in enumerate(load_batches(run, range(min(1 + TIMED, run.total)))):
        run.replicas[0].step(own, iteration, learning_rate(run.config, iteration, run.per_epoch)).item()
        times.append(time.perf_counter())
        if times[-1] - times[0] > TIMED_SECONDS:
            break
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (len(times) - 1 - first)
