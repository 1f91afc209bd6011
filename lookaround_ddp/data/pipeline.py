"""From a config to a dataset and to the batches of this rank's replicas."""

from __future__ import annotations

from dataclasses import replace

from lookaround_ddp.config import Config
from lookaround_ddp.data.batches import NO_SINGLE, BatchPlan, Iterations, Single
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.device.batches import DeviceIterations, batched, pixels, resolved
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import Code


def open_on_all_ranks(config: Config, world: World) -> Dataset:
    """Opens the dataset on rank 0 first, since that may have to download it, and then on the others.

    Raises:
        UserError: a rank cannot, or has found other images to train on.
    """
    world.does("opening the data")
    with world.together():
        if world.main:
            dataset = open_dataset(config.data, config.seed)
    with world.together():
        if not world.main:
            dataset = open_dataset(config.data, config.seed)
    found = world.gather(dataset.trained_on)
    for rank, each in enumerate(found):
        if each != found[0]:
            raise UserError(f"rank {rank} has {each} to train on, and rank 0 {found[0]}: give all ranks the same data")
    return dataset


def make_batches(config: Config, dataset: Dataset, world: World, code: Code) -> Iterations:
    """Returns the batches of the hosted replicas, made by workers or on the device as the config says.

    Args:
        code: what becomes of an augmentation's dotted path.

    Raises:
        UserError: an augmentation that is unknown or does not fit, or too few images for each rank.
    """
    plan = BatchPlan(
        images=len(dataset.train),
        batch_size=config.data.batch_size,
        seed=config.seed,
        shared=config.data.batches == "shared",
        drop_last=config.data.drop_last,
    )
    plan.check(world.shards)
    pipelines = {
        number: train_pipelines(config.augment, config.replicas[number], dataset, config.label_smoothing, code)
        for number in world.hosted
    }
    single = single_phase(config, dataset, plan.iterations, code)
    if resolved(config, dataset, code).data.pipeline == "device":
        own = {number: [batched(each) for each in pipelines[number]] for number in pipelines}
        single = replace(single, pipelines=[batched(each) for each in single.pipelines])
        stored = pixels(dataset.train, world.device)
        return DeviceIterations(stored, dataset.train, plan, own, world.shard, world.shards, single)
    skip = config.data.on_corrupt == "skip"
    return Iterations(dataset.train, plan, pipelines, world.shard, world.shards, single, skip, config.data.workers)


def single_phase(config: Config, dataset: Dataset, per_epoch: int, code: Code) -> Single:
    """Returns the phase before the rounds in which one network trains for all replicas; NO_SINGLE if there is none."""
    if config.average.before_start == "replicas":
        return NO_SINGLE
    own = [each for entries in config.replicas for each in entries]
    pipelines = train_pipelines(config.augment, own, dataset, config.label_smoothing, code)
    return Single(
        until=max(1, round(config.average.start * per_epoch)),
        pipelines=pipelines,
        in_turn=config.average.before_start == "single_in_turn",
    )
