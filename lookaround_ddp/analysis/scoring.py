"""Scores of weights of one network, wherever they come from, by a rank alone: so ranks can share many of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from lookaround_ddp import seeds
from lookaround_ddp.checkpoint import Checkpoints, run_of
from lookaround_ddp.config import Config
from lookaround_ddp.data import Dataset, Images, Subset
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Scorer, State, check_classes, check_same_data, mean_state, shipped_model
from lookaround_ddp.own_code import Code, imported, refused

Answer = TypeVar("Answer")


TELL_EVERY = 10.0  # between two lines that say how much is done


def lone_scorer(
    config: Config,
    dataset: Dataset,
    world: World,
    split: str = "test",
    images: int | None = None,
    update_bn: bool = False,
    code: Code = refused,
) -> Scorer:
    """Makes a scorer that a rank uses by itself, on a split or on so many of its images, always the same ones.

    Small images are kept as batches; photographs would not fit into memory.
    """
    alone = World(0, 1, world.replicas, world.device, "none")
    found = choose_images(dataset, split, images)
    return Scorer(config, dataset, found, alone, update_bn=update_bn, code=code, keep=dataset.native is not None)


def choose_images(dataset: Dataset, split: str, images: int | None) -> Images:
    """Returns a split of the dataset, or so many of its images: a fixed draw, since files may be sorted by class.

    Raises:
        UserError: there is no such split.
    """
    found = {"test": dataset.test, "train": dataset.train, "validation": dataset.validation}[split]
    if found is None:
        raise UserError("--split validation: the run held out no images (data.validation)")
    if images is None or images >= len(found):
        return found
    if images < 1:
        raise UserError(f"--images is {images}: give 1 or more")
    return Subset(found, seeds.permutation(len(found), 0, seeds.SPLIT)[:images].sort().values.tolist())


def map_over_ranks(
    count: int,
    compute: Callable[[int], Answer],
    world: World,
    what: str | None = None,
    keep: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Computes `compute(i)` for i < count, one rank each, and returns all results in order on all ranks.

    Collective; `compute` is not. The ranks exchange results after each of theirs, so that none waits for long for the
    others, and all know what is done.

    Args:
        what: name of the results, for rank 0 to print how long they take and how many are done; None prints nothing.
        keep: called on every rank with each number and its result, soon after it is known.
    """
    found: list[Answer] = []
    pace = Pace(count, what, world) if what else None
    for first in range(0, count, world.size):
        own: list[Answer] = []
        with world.together():
            if first + world.rank < count:
                own.append(compute(first + world.rank))
        new = [value for values in world.gather(own) for value in values]
        if keep is not None:
            for number, value in enumerate(new, first):
                keep(number, value)
        found += new
        if pace is not None:
            pace.tick(len(found))
    return found


class Pace:
    """Says on rank 0 what a long computation will cost, after its first parts, and then how far it is."""

    def __init__(self, total: int, what: str, world: World) -> None:
        self.total, self.what, self.world = total, f"{total} {what}", world
        self.start, self.said = time.monotonic(), 0.0
        self.first: tuple[float, int] | None = None

    def tick(self, done: int) -> None:
        """Notes that `done` parts are done, and prints on rank 0 what is left, at most every TELL_EVERY."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        since, before = (self.start, 0) if done == self.first[1] else self.first  # the first parts also load the images
        left = (now - since) / (done - before) * (self.total - done)
        self.world.does(f"computing {self.what}: {done} are done")
        if not self.world.main or now - self.said < TELL_EVERY or done == self.total:
            return
        if self.said == 0:
            ranks = "1 rank" if self.world.size == 1 else f"{self.world.size} ranks"
            print(f"{self.what} on {ranks}: about {_duration(left)}", flush=True)
        else:
            print(f"{done} of {self.what} are done, about {_duration(left)} are left", flush=True)
        self.said = now


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def parameters_of(model: nn.Module, state: State) -> Tensor:
    """Returns a state's floating-point parameters, without buffers, as one vector, fp64, on the CPU."""
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    return torch.cat([state[name].detach().cpu().double().flatten() for name in names])


def shipped_states(runs: Sequence[Path], configs: Sequence[Config], dataset: Dataset, world: World) -> list[State]:
    """Returns the weights of the one network that each finished run ships, on the CPU.

    A checkpoint's folder stands for the mean of its replicas.

    Raises:
        UserError: a run has none, is named twice, or its network is not that of the first.
    """
    check_same_data(runs, configs)
    states: list[State] = []
    for run, config in zip(runs, configs, strict=True):
        if run.resolve() in [other.resolve() for other in runs[: len(states)]]:
            raise UserError(f"{run} is named twice")
        folder, iteration = run_of(run)
        if iteration is not None:
            state = mean_state(replica_states(folder, config, iteration, world))
        else:
            model, metadata = shipped_model(run, config)
            check_classes(run, metadata["classes"], dataset)
            state = {name: value.clone() for name, value in model.state_dict().items()}
        if states and shapes(state) != shapes(states[0]):
            raise UserError(f"{run} and {runs[0]} have different networks: their weights cannot be compared")
        states.append(state)
    return states


def replica_states(run: Path, config: Config, iteration: int, world: World) -> list[State]:
    """Returns the weights of the replicas in a run's checkpoint, on the CPU; see `Checkpoints.replica_state`."""
    checkpoints = Checkpoints(run, 1, world, print)
    if iteration not in (known := checkpoints.iterations()):
        raise UserError(f"{run} has no checkpoint {iteration}: it has {', '.join(map(str, sorted(known))) or 'none'}")
    return [checkpoints.replica_state(number, iteration) for number in range(len(config.replicas))]


def shapes(state: State) -> list[tuple[str, torch.Size]]:
    """Returns the names and shapes of a state's tensors, which are equal for two networks of one structure."""
    return [(name, value.shape) for name, value in state.items()]


def describe_images(options: argparse.Namespace, scorer: Scorer) -> str:
    """Says which images a figure's losses are of."""
    kind = {"test": "test", "train": "training", "validation": "held-out"}[options.split]
    return f"{len(scorer.images):,} {kind} images"


def code_of(options: argparse.Namespace) -> Code:
    """Returns what becomes of an augmentation's dotted path: it is run where the user trusts its maker."""
    return imported if options.trust else refused


def default_output(options: argparse.Namespace, run: Path, name: str) -> Path:
    return options.out if options.out is not None else run_of(run)[0] / name
