"""Scores of a network on a split: every image counted once, the same figures on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lookaround_ddp.config import Config
from lookaround_ddp.data.augment import evaluation_transform
from lookaround_ddp.data.datasets import Dataset, Images
from lookaround_ddp.data.loader import Batch, EvaluationBatches, load
from lookaround_ddp.distributed import World
from lookaround_ddp.replica import Normalize, autocast

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Score = dict[str, float]  # top1 and top5 in percent (top5 with 5 classes or more), nll in nats per image


class Evaluator:
    """Evaluates networks on one split.

    The split is cut into batches, and batch b's sums are one row of a table, whoever computes them; the
    rows are added in order. So the figures depend on neither the number of ranks nor their shares.
    """

    def __init__(
        self, batches: EvaluationBatches, classes: int, normalize: Normalize, precision: str, workers: int, world: World
    ) -> None:
        self.batches, self.normalize, self.precision = batches, normalize, precision
        self.classes, self.workers, self.world = classes, workers, world

    def shared(self, model: nn.Module) -> Score:
        """The score of a model that all ranks hold, each evaluating its share. Collective."""
        table = self._table(model, self.world.rank, self.world.size)
        return self._score(self.world.sum(table))

    def replicas(self, models: Iterable[nn.Module]) -> list[Score]:
        """The score of each of the d replicas, in order, each evaluated by the ranks that train it. Collective."""
        tables = torch.zeros(self.world.replicas, len(self.batches), 3, dtype=torch.float64)
        for number, model in zip(self.world.hosted, models, strict=True):
            tables[number] = self._table(model, self.world.shard, self.world.shards)
        return [self._score(table) for table in self.world.sum(tables)]

    @torch.no_grad()
    def _table(self, model: nn.Module, first: int, step: int) -> Tensor:
        """Shape (batches, 3), fp64: images right at the first guess, right in five, sum of -log p.

        Rows of batches that other ranks evaluate are 0.
        """
        numbers = range(first, len(self.batches), step)
        table = torch.zeros(len(self.batches), 3, dtype=torch.float64, device=self.world.device)
        with evaluating(model):
            pinned = self.world.device.type == "cuda"
            for number, batch in zip(numbers, load(self.batches, numbers, self.workers, pinned), strict=True):
                labels = batch.labels.to(self.world.device, non_blocking=True)
                with autocast(self.precision, self.world.device):
                    logits = model(self.normalize(batch.images))
                logits = logits.double()
                hits = logits.topk(min(5, self.classes)).indices == labels[:, None]
                table[number, 0] = hits[:, 0].sum()
                table[number, 1] = hits.sum()
                table[number, 2] = cross_entropy(logits, labels, reduction="sum")
        return table.cpu()

    def _score(self, table: Tensor) -> Score:
        top1, top5, nll = (_sum_in_order(table) / len(self.batches.split)).tolist()
        score = {"top1": 100 * top1, "top5": 100 * top5, "nll": nll}
        if self.classes < 5:
            del score["top5"]
        return score


def make_evaluator(config: Config, dataset: Dataset, split: Images, world: World) -> Evaluator:
    """The evaluator of one of a dataset's splits, as the config says."""
    normalize = Normalize(dataset, world, config.channels_last)
    batches = EvaluationBatches(split, evaluation_transform(dataset), config.evaluate.batch_size)
    workers = config.data.workers if dataset.native is None else 0  # arrays need no decoding
    return Evaluator(batches, dataset.classes, normalize, config.precision, workers, world)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[list[list[Batch]]], normalize: Normalize, precision: str, world: World
) -> None:
    """Sets batch-norm's running statistics to those of the model's own activations on these batches. Collective.

    Mean and variance follow from the sums over all batches, replicas and augmentations of every rank: with
    batch means m_b and variances v_b, mean = E[m_b] and variance = E[v_b] + Var[m_b]. Each replica has a row
    of sums and the rows are added in order, so the result does not depend on which ranks host the replicas.

    Args:
        model: the same on every rank.
        batches: for each iteration, for each replica that this rank hosts, a batch of each augmentation.
    """
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    if not norms:
        return
    features = [norm.num_features for norm in norms]
    rows = torch.zeros(world.replicas, 1 + 3 * sum(features), dtype=torch.float64, device=world.device)
    with evaluating(model), _statistics_of_the_batch(norms):
        for hosted in batches:
            for number, updates in zip(world.hosted, hosted, strict=True):
                for batch in updates:
                    with autocast(precision, world.device):
                        model(normalize(batch.images))
                    rows[number] += _moments(norms)
    count, *moments = _sum_in_order(world.sum(rows.cpu())).split([1, *[sum(features)] * 3])
    means, squares, variances = (moment / count for moment in moments)
    variances = variances + squares - means**2
    for norm, mean, variance in zip(norms, means.split(features), variances.split(features), strict=True):
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)


@contextmanager
def _statistics_of_the_batch(norms: Sequence[Any]) -> Iterator[None]:
    """While the block runs, a norm's running statistics are those of the last batch.

    Its count of batches is restored too: it would differ with the number of replicas on this rank.
    """
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked.clone() for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def _moments(norms: Sequence[nn.Module]) -> Tensor:
    """Of the last batch, fp64, shape (1 + 3 * features of all norms,): 1, means, squared means, variances."""
    means = torch.cat([norm.get_buffer("running_mean") for norm in norms]).double()
    variances = torch.cat([norm.get_buffer("running_var") for norm in norms]).double()
    return torch.cat([means.new_ones(1), means, means**2, variances])


def _sum_in_order(rows: Tensor) -> Tensor:
    """The sum of the rows, first to last: a reduction of torch's own may add them in any order."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row
    return total
