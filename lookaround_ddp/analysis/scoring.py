"""Scores of weights of one network, wherever they come from, by a rank alone: so ranks can share many of them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lookaround_ddp import seeds
from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, EvaluationBatches, Images, Subset, load, make_batches
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Score, check_classes, check_same_data, make_evaluator, recalibrate, shipped_model
from lookaround_ddp.models import Normalize, create_model, placed

State = dict[str, Tensor]


T = TypeVar("T")


TELL_EVERY = 10.0  # between two lines that say how much is done


class Scorer:
    """Scores states of one network on one split. Not collective.

    Args:
        images: score on so many images of the split alone, always the same ones.
        update_bn: measure batch-norm's statistics of each state over training batches of its own.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        world: World,
        split: str = "test",
        images: int | None = None,
        update_bn: bool = False,
    ) -> None:
        self.alone = World(0, 1, world.replicas, world.device, "none")
        self.config, self.update_bn = config, update_bn
        self.model = placed(new_network(config, dataset), config.channels_last, self.alone.device)
        self.images = choose_images(dataset, split, images)
        self.evaluator = make_evaluator(config, dataset, self.images, self.alone)
        self.normalize = Normalize(dataset.mean, dataset.std, self.alone.device, config.channels_last)
        self.training = make_batches(config, dataset, self.alone)
        self.kept: list[list[list[Batch]]] | None = None
        self.small = dataset.native is not None  # photographs do not fit into memory
        if self.small:
            old = self.evaluator.batches
            self.evaluator.batches = KeptBatches(old.split, old.transform, old.batch_size)

    def score(self, state: State) -> Score:
        return self.evaluator.shared(self.load(state))

    def predictions(self, state: State) -> Tensor:
        """Returns the predicted class of each image, int64, shape (images,)."""
        return self.evaluator.logits(self.load(state), 0, 1).argmax(dim=1)

    def load(self, state: State) -> nn.Module:
        """Returns the network with this state; with `update_bn`, it has batch-norm statistics measured anew."""
        self.model.load_state_dict(state)
        if self.update_bn:
            models = [self.model] * len(self.alone.hosted)
            recalibrate(models, self._batches(), self.normalize, self.config.precision, self.alone)
        return self.model

    def cost(self) -> str:
        """Says how many images a score is computed from."""
        text = f"{len(self.images):,} images"
        if self.update_bn:
            updates = sum(map(len, self.config.replicas))
            text += f" and {self._iterations() * updates * self.config.data.batch_size:,} training images"
        return text

    def _iterations(self) -> int:
        """Returns over how many iterations' batches batch-norm's statistics are measured."""
        per_epoch = self.training.plan.iterations
        return min(per_epoch, self.config.evaluate.recalibrate_iterations or per_epoch)

    def _batches(self) -> Iterable[list[list[Batch]]]:
        """Returns training batches of each replica's augmentations; they are drawn once if they fit into memory."""
        if self.kept is not None:
            return self.kept
        first, count = self.training.single.until, self._iterations()
        pinned = self.alone.device.type == "cuda"
        batches = load(self.training, range(first, first + count), self.config.data.workers, pinned)
        if not self.small:
            return batches
        self.kept = list(batches)
        return self.kept


class KeptBatches(EvaluationBatches):
    """Batches that are made once: they are few megabytes, and scored hundreds of times."""

    def __getitem__(self, number: int) -> Batch:
        if not hasattr(self, "made"):
            self.made: dict[int, Batch] = {}
        if number not in self.made:
            self.made[number] = super().__getitem__(number)
        return self.made[number]


def new_network(config: Config, dataset: Dataset) -> nn.Module:
    """Makes a network that the config's weights fit, on the CPU."""
    return create_model(config.model.model_copy(update={"pretrained": False}), dataset.classes, dataset.channels)


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
    compute: Callable[[int], T],
    world: World,
    what: str | None = None,
    keep: Callable[[int, T], None] | None = None,
) -> list[T]:
    """Computes `compute(i)` for i < count, one rank each, and returns all results in order on all ranks.

    Collective; `compute` is not. The ranks exchange results after each of theirs, so that none waits for long for the
    others, and all know what is done.

    Args:
        what: name of the results, for rank 0 to print how long they take and how many are done; None prints nothing.
        keep: called on every rank with each number and its result, soon after it is known.
    """
    found: list[T] = []
    pace = Pace(count, what, world) if what else None
    for first in range(0, count, world.size):
        own: list[T] = []
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


def loss_barrier(losses: Sequence[float]) -> float:
    """Returns how far losses at even steps from one network to another rise above the straight line of their ends.

    It is the highest rise between the ends: negative if the loss sags everywhere, as in a convex valley.
    """
    line = np.linspace(losses[0], losses[-1], len(losses))
    return float((np.asarray(losses) - line)[1:-1].max())


def shipped_states(runs: Sequence[Path], configs: Sequence[Config], dataset: Dataset) -> list[State]:
    """Returns the weights of the one network that each finished run ships, on the CPU.

    Raises:
        UserError: a run has none, is named twice, or its network is not that of the first.
    """
    check_same_data(runs, configs)
    states: list[State] = []
    for run, config in zip(runs, configs, strict=True):
        if run.resolve() in [other.resolve() for other in runs[: len(states)]]:
            raise UserError(f"{run} is named twice")
        model, metadata = shipped_model(run, config)
        check_classes(run, metadata["classes"], dataset)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        if states and shapes(state) != shapes(states[0]):
            raise UserError(f"{run} and {runs[0]} have different networks: their weights cannot be compared")
        states.append(state)
    return states


def shapes(state: State) -> list[tuple[str, torch.Size]]:
    """Returns the names and shapes of a state's tensors, which are equal for two networks of one structure."""
    return [(name, value.shape) for name, value in state.items()]


def describe_images(options: argparse.Namespace, scorer: Scorer) -> str:
    """Says which images a figure's losses are of."""
    kind = {"test": "test", "train": "training", "validation": "held-out"}[options.split]
    return f"{len(scorer.images):,} {kind} images"


def default_output(options: argparse.Namespace, run: Path, name: str) -> Path:
    return options.out if options.out is not None else run / name
