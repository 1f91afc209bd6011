"""Scores of weights of one network, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor, nn

from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, EvaluationBatches, Images, load, make_batches
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluation.evaluator import Score, make_evaluator
from lookaround_ddp.evaluation.recalibrate import recalibrate
from lookaround_ddp.models import Normalize, empty_model, placed
from lookaround_ddp.own_code import Code, refused

State = dict[str, Tensor]  # of a network


class Scorer:
    """Scores states of one network on one split. Collective over the ranks of `world`, each of which has all states.

    Args:
        images: the split to score on.
        update_bn: measure batch-norm's statistics of each state anew, over the first training batches of a round.
        code: what becomes of an augmentation's dotted path, with `update_bn`.
        keep: make each batch once and keep it: for small images that are scored hundreds of times.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        images: Images,
        world: World,
        *,
        update_bn: bool = False,
        code: Code = refused,
        keep: bool = False,
    ) -> None:
        self.config, self.world, self.images = config, world, images
        network = empty_model(config.model, dataset.classes, dataset.channels)
        self.model = placed(network, config.channels_last, world.device)
        self.normalize = Normalize(dataset.mean, dataset.std, world.device, config.channels_last)
        self.evaluator = make_evaluator(config, dataset, images, world)
        self.update_bn = update_bn
        if update_bn:  # nothing else needs the augmentations, which may be somebody's code
            self.training = make_batches(config, dataset, world, code)
        self.keep, self.kept = keep, list[list[list[Batch]]]()
        if keep:
            old = self.evaluator.batches
            self.evaluator.batches = KeptBatches(old.split, old.transform, old.batch_size)

    def score(self, state: State) -> Score:
        """Returns the score of the network with this state."""
        return self.evaluator.shared(self.load(state))

    def predictions(self, state: State) -> Tensor:
        """Returns the predicted class of each image, int64, shape (images,). For a world of one rank."""
        return self.evaluator.logits(self.load(state), 0, 1).argmax(dim=1)

    def load(self, state: State) -> nn.Module:
        """Returns the network with this state; with `update_bn`, it has batch-norm statistics measured anew."""
        self.model.load_state_dict(state)
        if self.update_bn:
            models = [self.model] * len(self.world.hosted)
            recalibrate(models, self._batches(), self.normalize, self.config.precision, self.world)
        return self.model

    def cost(self) -> str:
        """Says how many images a score is computed from."""
        text = f"{len(self.images):,} images"
        if self.update_bn:
            updates = sum(map(len, self.config.replicas))
            text += f" and {len(self._iterations()) * updates * self.config.data.batch_size:,} training images"
        return text

    def _iterations(self) -> range:
        """Returns the iterations over whose batches batch-norm's statistics are measured: the first of the rounds."""
        per_epoch, first = self.training.plan.iterations, self.training.single.until
        return range(first, first + min(per_epoch, self.config.evaluate.recalibrate_iterations or per_epoch))

    def _batches(self) -> Iterable[list[list[Batch]]]:
        """Returns training batches of each replica's augmentations, drawn once if they are kept."""
        if not self.kept:
            batches = load(self.training, self._iterations(), self.training.workers, self.world.device)
            if not self.keep:
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


def loss_barrier(losses: Sequence[float]) -> float:
    """Returns how far losses at even steps from one network to another rise above the straight line of their ends.

    It is the highest rise between the ends (Frankle et al., arXiv 1912.05671): negative if the loss sags everywhere,
    as in a convex valley.
    """
    line = np.linspace(losses[0], losses[-1], len(losses))
    return float((np.asarray(losses) - line)[1:-1].max())
