"""From a config to a `Run`: its data, batches, replicas, and what averages them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from lookaround_ddp.averaging import Lookaround, Nodes, Outer, content_digest
from lookaround_ddp.checkpoint import Checkpoints, pipeline_before
from lookaround_ddp.config import Config, check_cycles, check_length, iterations_of, lengths, with_pipeline
from lookaround_ddp.data import Dataset, Iterations, make_batches, open_on_all_ranks
from lookaround_ddp.data.device import resolved
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import make_evaluators
from lookaround_ddp.optim import Trajectory
from lookaround_ddp.own_code import Code, imported
from lookaround_ddp.training.progress import Losses, Stopwatch
from lookaround_ddp.training.record import Record
from lookaround_ddp.training.replica import Replica
from lookaround_ddp.training.run import Run


def set_up(config: Config, world: World, code: Code = imported) -> Run:
    """Makes all parts of a run, at its start; writes nothing. Collective.

    Args:
        code: what becomes of an augmentation's dotted path.

    Raises:
        UserError: a mistake in the config, or in the data.
    """
    config, dataset = as_it_began(config, world), open_on_all_ranks(config, world)
    with world.together():
        config = resolved(config, dataset, code)
        batches, replicas = build(config, dataset, world, code)
    per_epoch = batches.plan.iterations
    record_every = {"every": config.record.period(per_epoch)}
    config = config.model_copy(update={"record": config.record.model_copy(update=record_every)})
    total = config.length(per_epoch)
    check_length(config, total / per_epoch)
    check_cycles(config, total)
    around = make_lookaround(config, replicas, per_epoch, world)
    record = Record(config, world.main, total)
    test, validation = make_evaluators(config, dataset, world)
    return Run(
        config=config,
        dataset=dataset,
        world=world,
        batches=batches,
        replicas=replicas,
        around=around,
        weight_averages=make_weight_averages(config, replicas, per_epoch),
        test=test,
        validation=validation,
        record=record,
        checkpoints=Checkpoints(Path(config.out), config.checkpoint.keep, world, record.say),
        losses=Losses(config, batches, world, counted=0),
        watch=Stopwatch(),
        start=content_digest(replicas[0].model),
    )


def as_it_began(config: Config, world: World) -> Config:
    """Returns the config with the pipeline of the run in its folder, if it leaves that open. Collective."""
    if config.data.pipeline != "auto":
        return config
    began: str | None = None
    with world.together():
        if world.main:
            began = pipeline_before(Path(config.out))
    began = world.share(began)
    return config if began is None else with_pipeline(config, began)


def build(config: Config, dataset: Dataset, world: World, code: Code) -> tuple[Iterations, list[Replica]]:
    """Makes the batches of this rank, and the replicas that it trains on them."""
    batches = make_batches(config, dataset, world, code)
    return batches, [Replica(config, number, dataset, world) for number in world.hosted]


def make_lookaround(config: Config, replicas: list[Replica], per_epoch: int, world: World) -> Lookaround:
    """Starts all replicas from one point, and returns what averages them.

    Raises:
        UserError: settings of the average that do not go together.
    """
    rounds = lengths(config.average.k, per_epoch)
    for _, length in rounds:
        check_round(config, length, per_epoch)
    outer = None
    if config.average.outer is not None:
        outer = Outer(**config.average.outer.model_dump())
    try:
        nodes = make_nodes(config, per_epoch)
        if world.replicas == 1:  # in a preflight
            outer = nodes = None
        return Lookaround(
            [replica.model for replica in replicas],
            k=steps_in_round(rounds),
            start=round(config.average.start * per_epoch),
            group=world.replica_group,
            beside=world.background_group,
            inside=world.node_group,
            shards=world.shard_group,
            buffers=config.average.buffers,
            exact=config.average.exact,
            optimizers=[replica.optimizer for replica in replicas],
            optimizer_state=config.average.optimizer_state,
            measure=True,
            delay=config.average.delay,
            outer=outer,
            nodes=nodes,
        )
    except ValueError as error:
        raise UserError(f"average: {error}") from None


def steps_in_round(rounds: Sequence[tuple[int, int]]) -> int | Callable[[int], int] | None:
    """Returns the k of `Lookaround` for rounds of these lengths, each with the iteration from which it holds."""
    if len(rounds) < 2:
        return rounds[0][1] if rounds else None
    begins = [begin for begin, _ in rounds]
    return lambda steps: rounds[bisect_right(begins, steps) - 1][1]


def check_round(config: Config, length: int, per_epoch: int) -> None:
    """Raises UserError unless `delay` and Lookahead go together with rounds of so many iterations."""
    delay = config.average.delay
    if isinstance(config.average.k, tuple) and delay >= length:  # of one k, `Lookaround` says the same
        raise UserError(f"average: delay is {delay} and a k is {length}: a mean can arrive 0 to k - 1 iterations later")
    if len(config.replicas) > 1 and config.optimizer.lookahead is not None:
        check_lookahead(config, config.optimizer.lookahead.k, length, per_epoch)


def make_nodes(config: Config, per_epoch: int) -> Nodes | None:
    """Returns the nodes of the config's replicas, if they have any.

    Raises:
        ValueError: settings that do not go together.
    """
    if config.average.nodes is None:
        return None
    nodes = Nodes(config.average.nodes.size, iterations_of(config.average.nodes.k, per_epoch))
    nodes.check(steps_in_round(lengths(config.average.k, per_epoch)), config.average.delay, len(config.replicas))
    return nodes


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


def make_weight_averages(config: Config, replicas: list[Replica], per_epoch: int) -> list[Trajectory]:
    """Returns what averages along time: the mean model, or each hosted replica if they are never averaged.

    Raises:
        UserError: the run would end before its first snapshot, or the first validation.
    """
    if config.trajectory.name == "none":
        return []
    start, period = round(config.trajectory.start * per_epoch), config.trajectory.period(per_epoch)
    if start + period > config.length(per_epoch):
        raise UserError(
            f"trajectory: its first {period} iterations after epoch {config.trajectory.start:g} are not over when "
            f"the run ends (after {config.length(per_epoch)}, {per_epoch} in an epoch): train longer or start earlier"
        )
    own = config.average.k == "never"
    return [
        Trajectory(config.trajectory, replica.model, per_epoch, own) for replica in (replicas if own else replicas[:1])
    ]
