"""Which images an iteration uses, and the batches made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import data

from lookaround_ddp import seeds
from lookaround_ddp.data.images import Images, next_readable, stored_pixels
from lookaround_ddp.data.transforms import Pipeline, StepFailed
from lookaround_ddp.errors import BatchError, UserError

if TYPE_CHECKING:
    from timm.data import Mixup


@dataclass(frozen=True)
class BatchPlan:
    """Which images an iteration uses.

    Args:
        images: size of the training set.
        batch_size: images of an update of one replica.
        shared: all replicas use the same minibatch; otherwise each has its own order.
    """

    images: int
    batch_size: int
    seed: int
    shared: bool
    drop_last: bool = False

    @property
    def iterations(self) -> int:
        """Iterations in an epoch; the last one's batch may be smaller."""
        full, rest = divmod(self.images, self.batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    def check(self, shards: int) -> None:
        """Raises UserError if some batch has fewer than two images for each rank of a replica.

        Batch-norm cannot train on a single image, and ranks must never run out of images.
        """
        rest = 0 if self.drop_last else self.images % self.batch_size
        smallest = rest if rest and self.iterations > 1 else min(self.batch_size, self.images)
        if self.iterations == 0:
            raise UserError(f"data.batch_size is {self.batch_size}, more than the {self.images} training images")
        if smallest < 2 * shards:
            raise UserError(
                f"an epoch's smallest batch has {smallest} of {self.images} images, fewer than 2 for each of a "
                f"replica's {shards} ranks: change data.batch_size ({self.batch_size}) or set data.drop_last=true"
            )

    def indices(self, iteration: int, replica: int) -> Tensor:
        """Returns the indices of a replica's minibatch: int64, (batch_size,), perhaps fewer in an epoch's last one.

        Each epoch visits every image at most once; with drop_last it leaves out those of the smaller last batch.
        """
        epoch, number = divmod(iteration, self.iterations)
        order = _order(self.images, self.seed, epoch, 0 if self.shared else replica + 1)
        return order[number * self.batch_size : (number + 1) * self.batch_size]


@lru_cache(maxsize=16)
def _order(images: int, seed: int, epoch: int, replica: int) -> Tensor:
    return seeds.permutation(images, seed, seeds.ORDER, epoch, replica)


@dataclass(frozen=True)
class Batch:
    """The images of one update: uint8 (n, C, H, W), and their labels, int64 (n,).

    share is n * D / N, for n of the minibatch's N images on this one of the replica's D ranks: with the
    loss weighted by it, the mean of the ranks' gradients is the minibatch's gradient. mix mixes images and targets on
    the device (mixup, cutmix); None if they stay as they are.
    """

    images: Tensor
    labels: Tensor
    share: float
    mix: Mixup | None = None

    def pin_memory(self) -> Batch:
        if self.images.device.type != "cpu":  # made on the device
            return self
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Single:
    """The first iterations of a run in which replica 0 trains alone, on every replica's augmentations."""

    until: int
    """Iterations of this phase; 0: there is none."""
    pipelines: Sequence[Pipeline] = ()
    in_turn: bool = False
    """One augmentation in an iteration, the next in the next; otherwise all of them in each."""

    def pipelines_at(self, iteration: int) -> list[tuple[int, Pipeline]]:
        numbered = list(enumerate(self.pipelines))
        return [numbered[iteration % len(numbered)]] if self.in_turn else numbered


NO_SINGLE = Single(until=0)


Key = tuple[int, int, int]  # epoch, replica, number of the augmentation: what an image's draws are of


class Iterations(data.Dataset[list[list[Batch]]]):
    """iteration -> for each hosted replica, for each of its augmentations, a batch.

    Args:
        workers: the processes that are to make the batches; 0: the one that asks for them.
        skip: an image that cannot be read is replaced by the next one and its label. It is augmented by the draws
            that the missing one would have had, so that it does not come twice in an epoch as the same picture.
    """

    def __init__(
        self,
        split: Images,
        plan: BatchPlan,
        pipelines: Mapping[int, Sequence[Pipeline]],
        shard: int = 0,
        shards: int = 1,
        single: Single = NO_SINGLE,
        skip: bool = False,
        workers: int = 0,
    ) -> None:
        self.split, self.plan, self.pipelines = split, plan, pipelines
        self.shard, self.shards, self.single = shard, shards, single
        self.skip, self.workers = skip, workers
        self.labels = torch.tensor(split.labels)

    def pipelines_at(self, iteration: int, replica: int) -> list[tuple[int, Pipeline]]:
        """Returns a replica's augmentations of an iteration, each with its number; none if it does not train."""
        if iteration < self.single.until:
            return self.single.pipelines_at(iteration) if replica == 0 else []
        return list(enumerate(self.pipelines[replica]))

    def __getitem__(self, iteration: int) -> list[list[Batch]]:
        epoch = iteration // self.plan.iterations
        hosted = list(self.pipelines)
        result: list[list[Batch]] = []
        for replicas in [hosted] if self.plan.shared else [[replica] for replica in hosted]:
            whole = self.plan.indices(iteration, replicas[0])
            indices = whole.tensor_split(self.shards)[self.shard]
            share = len(indices) * self.shards / len(whole)
            own = [
                [((epoch, replica, number), pipeline) for number, pipeline in self.pipelines_at(iteration, replica)]
                for replica in replicas
            ]
            batches = iter(self._batches(indices, [each for keyed in own for each in keyed], share))
            result += [[next(batches) for _ in keyed] for keyed in own]
        return result

    def _batches(self, indices: Tensor, keyed: Sequence[tuple[Key, Pipeline]], share: float) -> list[Batch]:
        """Makes a batch of the same images for each pipeline; an image is decoded once for all of them.

        Raises:
            BatchError: an augmentation failed; the message names it and the image.
        """
        made: list[list[Tensor]] = [[] for _ in keyed]
        used = []
        for index in indices.tolist() if keyed else ():
            place, image = next_readable(self.split, index) if self.skip else (index, self.split.image(index))
            used.append(place)
            for (key, pipeline), own in zip(keyed, made, strict=True):
                seeds.seed_cpu(self.plan.seed, seeds.AUGMENT, *key, index)
                if pipeline.custom:
                    seeds.seed_python(self.plan.seed, seeds.AUGMENT, *key, index)
                try:
                    own.append(pipeline.transform(image.copy() if pipeline.custom else image))  # which may draw into it
                except StepFailed as error:
                    message = f"{error.what} of {self.split.name(place)}: {error.cause}"
                    raise BatchError(message, error.trace) from error
        return [
            Batch(torch.stack(own), self.labels[used], share, pipeline.mix)
            for (_, pipeline), own in zip(keyed, made, strict=True)
        ]


class EvaluationBatches(data.Dataset[Batch]):
    """Batch number -> consecutive images: the same batches on any number of ranks, every image in one.

    An image that cannot be read is an error, whatever data.on_corrupt says: a score over fewer images is another
    number.

    Args:
        transform: of a PIL image to uint8 (C, H, W); None: images in memory are shown as they are stored.
    """

    def __init__(self, split: Images, transform: Callable[[Any], Tensor] | None, batch_size: int) -> None:
        self.split, self.transform, self.batch_size = split, transform, batch_size
        self.labels = torch.tensor(split.labels)

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def indices(self, number: int) -> range:
        """Returns the indices of the images of the split that are in a batch."""
        return range(number * self.batch_size, min((number + 1) * self.batch_size, len(self.split)))

    def __getitem__(self, number: int) -> Batch:
        indices = self.indices(number)
        if self.transform is None:
            images = stored_pixels(self.split, indices)
        else:
            images = torch.stack([self.transform(self.split.image(index)) for index in indices])
        return Batch(images, self.labels[indices.start : indices.stop], 1.0)
