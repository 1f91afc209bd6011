"""From a config to what a run trains: its data, batches, replicas, and what averages them."""

from __future__ import annotations

from dataclasses import replace

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.config import Config, UserError
from lookaround_ddp.data.augment import train_pipelines
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.device import DeviceIterations, batched, pixels, resolved
from lookaround_ddp.data.loader import NO_SINGLE, Iterations, Plan, Single
from lookaround_ddp.distributed import World
from lookaround_ddp.replica import Replica
from lookaround_ddp.trajectory import Trajectory


def prepare(config: Config, world: World) -> Dataset:
    """Opens the dataset; rank 0 first, since it may have to download it."""
    world.does("opening the data")
    with world.together():
        if world.main:
            dataset = open_dataset(config.data, config.seed)
    with world.together():
        if not world.main:
            dataset = open_dataset(config.data, config.seed)
    return dataset


def build(config: Config, dataset: Dataset, world: World) -> tuple[Iterations, list[Replica]]:
    """The batches of this rank, and the replicas that it trains on them."""
    batches = make_batches(config, dataset, world)
    return batches, [Replica(config, number, dataset, world) for number in world.hosted]


def make_batches(config: Config, dataset: Dataset, world: World) -> Iterations:
    plan = Plan(
        images=len(dataset.train),
        batch_size=config.data.batch_size,
        seed=config.seed,
        shared=config.data.batches == "shared",
        drop_last=config.data.drop_last,
    )
    plan.check(world.shards)
    pipelines = {
        number: train_pipelines(config.augment, config.replicas[number], dataset, config.label_smoothing)
        for number in world.hosted
    }
    single = single_phase(config, dataset, plan.iterations)
    if resolved(config, dataset).data.pipeline == "device":
        own = {number: [batched(each) for each in pipelines[number]] for number in pipelines}
        single = replace(single, pipelines=[batched(each) for each in single.pipelines])
        stored = pixels(dataset.train, world.device)
        return DeviceIterations(stored, dataset.train, plan, own, world.shard, world.shards, single)
    skip = config.data.on_corrupt == "skip"
    return Iterations(dataset.train, plan, pipelines, world.shard, world.shards, single, skip)


def single_phase(config: Config, dataset: Dataset, per_epoch: int) -> Single:
    """The iterations before the rounds, if one network trains in them for all replicas."""
    if config.average.before_start == "replicas":
        return NO_SINGLE
    own = [each for entries in config.replicas for each in entries]
    pipelines = train_pipelines(config.augment, own, dataset, config.label_smoothing)
    return Single(
        until=max(1, round(config.average.start * per_epoch)),
        pipelines=pipelines,
        in_turn=config.average.before_start == "single_in_turn",
    )


def lookaround(config: Config, replicas: list[Replica], per_epoch: int, world: World) -> Lookaround:
    period = config.average.period(per_epoch)
    if len(config.replicas) > 1 and period is not None and config.optimizer.lookahead is not None:
        check_lookahead(config, config.optimizer.lookahead.k, period, per_epoch)
    try:
        return Lookaround(
            [replica.model for replica in replicas],
            k=period,
            start=round(config.average.start * per_epoch),
            group=world.replica_group,
            beside=world.beside_group,
            shards=world.shard_group,
            buffers=config.average.buffers,
            exact=config.average.exact,
            optimizers=[replica.optimizer for replica in replicas],
            optimizer_state=config.average.optimizer_state,
            measure=True,
            hide=config.average.hide and not config.compile,  # which it cannot be behind
            delay=config.average.delay,
        )
    except ValueError as error:
        raise UserError(f"average: {error}") from None


def check_lookahead(config: Config, k: int, period: int, per_epoch: int) -> None:
    """Raises UserError unless rounds of so many iterations end where Lookahead's slow and fast weights are the same."""
    alone = round(config.average.start * per_epoch) if config.average.before_start == "replicas" else 0
    for own in config.replicas:
        for updates in (period * len(own), (alone + period) * len(own)):
            if updates % k:
                raise UserError(
                    f"optimizer.lookahead.k is {k} and a round has {updates} updates: the slow weights, which begin "
                    f"anew with each round, would lose the rest; choose average.k so that {k} divides the updates"
                )


def along_time(config: Config, replicas: list[Replica], per_epoch: int) -> list[Trajectory]:
    """The average along time: of the mean model, or of each hosted replica if they are never averaged.

    Raises:
        UserError: the run would end before its first snapshot, or the first validation.
    """
    if config.trajectory.name == "none":
        return []
    start, period = round(config.trajectory.start * per_epoch), config.trajectory.period(per_epoch)
    if start + period > config.epochs * per_epoch:
        raise UserError(
            f"trajectory: its first {period} iterations after epoch {config.trajectory.start:g} are not over when "
            f"the run ends ({config.epochs} epochs of {per_epoch} iterations): train longer or start earlier"
        )
    own = config.average.k == "never"
    return [
        Trajectory(config.trajectory, replica.model, per_epoch, own) for replica in (replicas if own else replicas[:1])
    ]
