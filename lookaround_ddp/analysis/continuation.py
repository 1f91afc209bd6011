"""The trainer's own steps from a run's checkpoint on, for a few iterations that are measured and then forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from lookaround_ddp.checkpoint import Checkpoints
from lookaround_ddp.config import Config
from lookaround_ddp.data import load, open_on_all_ranks
from lookaround_ddp.data.device import resolved
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import State
from lookaround_ddp.optim import learning_rate
from lookaround_ddp.own_code import Code
from lookaround_ddp.training import build, check_resumable, make_lookaround, parts, shown


class Continuation:
    """A run's replicas, which start from one of its checkpoints as often as wanted. Nothing is written.

    Average steps are at once, also of a run that trained with `average.delay`: what was on its way to its replicas adds
    up to nothing, and their mean is the same without. They are plain, and over all replicas, also of one with
    `average.outer` or `average.nodes`. Collective, like all methods.

    Args:
        code: what becomes of an augmentation's dotted path.

    Raises:
        UserError: the run has no rounds, or one replica.
    """

    def __init__(self, run: Path, config: Config, world: World, code: Code) -> None:
        if len(config.replicas) < 2 or config.average.k == "never":
            raise UserError(f"{run} has no replicas that are averaged: name a run of Lookaround")
        self.run, self.world = run, world
        self.dataset = open_on_all_ranks(config, world)
        with world.together():
            self.original = resolved(config, self.dataset, code)
            model = config.model.model_copy(update={"pretrained": False})  # its weights are those of a checkpoint
            average = config.average.model_copy(update={"delay": 0, "outer": None})
            self.config = self.original.model_copy(update={"model": model, "average": average})
            self.batches, self.replicas = build(self.config, self.dataset, world, code)
        self.per_epoch = self.batches.plan.iterations
        self.around = make_lookaround(self.config, self.replicas, self.per_epoch, world)
        for replica in self.replicas:
            replica.compensate_norm_momentum()

    def checkpoints(self) -> list[int]:
        """Returns the iterations of the run's checkpoints that rounds can begin from, oldest first."""
        found = Checkpoints(self.run, 1, self.world, print).iterations()
        found = [each for each in found if each > self.around.start]
        if not found:
            raise UserError(f"{self.run} has no checkpoint of its rounds")
        return sorted(self.world.share(found))

    def restore(self, iteration: int) -> None:
        """Gives the replicas their state after this iteration and an average step: the beginning of a round."""
        Checkpoints(self.run, 1, self.world, print).restore(
            parts(self.replicas, [], self.around),
            lambda state: check_resumable(self.original, self.dataset, state, longer=True),
            iteration,
        )
        self.average()

    def length(self, begun: int) -> int:
        """Returns the iterations of a round that begins after so many."""
        return self.around.rounds.length(begun) or 0  # never averaged: refused in the beginning

    def average(self) -> None:
        """Takes an average step, and restarts Lookahead's slow weights as a training does."""
        self.around.average()
        for replica in self.replicas:
            replica.restart_lookahead()

    def train(self, first: int, count: int, rate: float | None) -> Iterator[int]:
        """Trains `count` iterations from number `first` on, and yields the number of each after it, before any average.

        Args:
            rate: learning rate; None takes the schedule's, and after the run's end its last one.

        Raises:
            NotFiniteError: on all ranks, a weight is inf or NaN after an iteration, which is not yielded.
        """
        last = self.config.length(self.per_epoch) - 1
        upcoming = range(first, first + count)
        batches = load(self.batches, upcoming, self.batches.workers, self.world.device)
        for iteration, hosted in zip(upcoming, batches, strict=True):
            scheduled = learning_rate(self.config, min(iteration, last), self.per_epoch)
            for replica, own in zip(self.replicas, hosted, strict=True):
                replica.step(own, iteration, scheduled if rate is None else rate)
            self.around.check_finite(iteration + 1)
            yield iteration + 1

    def shown(self) -> AbstractContextManager[None]:
        """Lends the replicas the weights to evaluate, inside its `with` block: Lookahead's slow ones."""
        return shown(self.replicas)

    def states(self) -> list[State]:
        """Returns each replica's weights and buffers, on the CPU, on every rank."""
        self.around.synchronize_shards()
        with self.shown():
            mine = {
                replica.number: {
                    name: value.detach().cpu().clone() for name, value in replica.model.state_dict().items()
                }
                for replica in self.replicas
                if self.world.shard == 0
            }
        found = {number: state for each in self.world.gather(mine) for number, state in each.items()}
        return [found[number] for number in range(self.world.replicas)]
