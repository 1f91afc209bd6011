"""Scores of a network on a split: every image counted once, the same figures on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, EvaluationBatches, Images, evaluation_transform, in_memory, load
from lookaround_ddp.distributed import World
from lookaround_ddp.models import Normalize, autocast


def score_text(score: Mapping[str, float]) -> str:
    top5 = f" top-5 {score['top5']:.2f}" if "top5" in score else ""
    return f"top-1 {score['top1']:.2f}{top5} NLL {score['nll']:.4f}"


EnsembleScore = dict[str, dict[str, float]]  # of the mean of "logits", and of the mean of "probabilities"


Score = dict[str, float]  # top1 and top5 in percent (top5 with 5 classes or more), nll in nats per image


class Evaluator:
    """Evaluates networks on one split.

    The split is cut into batches, and batch b's sums are one row of a table, whoever computes them; the
    rows are added in order. So the figures depend on neither the number of ranks nor their shares.
    """

    def __init__(
        self,
        batches: EvaluationBatches,
        classes: int,
        normalize: Normalize,
        precision: str,
        workers: int,
        world: World,
    ) -> None:
        self.batches, self.normalize, self.precision = batches, normalize, precision
        self.classes, self.workers, self.world = classes, workers, world

    def shared(self, model: nn.Module) -> Score:
        """Returns the score of a model that all ranks hold, each evaluating its share. Collective."""
        table = self._table(model, self.world.rank, self.world.size)
        return self._score(self.world.sum(table))

    def replicas(self, models: Iterable[nn.Module]) -> list[Score]:
        """Returns each replica's score, in order, each evaluated by the ranks that train it. Collective."""
        tables = torch.zeros(self.world.replicas, len(self.batches), 4, dtype=torch.float64)
        for number, model in zip(self.world.hosted, models, strict=True):
            tables[number] = self._table(model, self.world.shard, self.world.shards)
        return [self._score(table) for table in self.world.sum(tables)]

    def ensemble(self, models: Iterable[nn.Module]) -> EnsembleScore:
        """Returns the score of the models' mean prediction, for models that all ranks hold. Collective."""
        tables = (self.world.sum(self.logits(model, self.world.rank, self.world.size)) for model in models)
        return self._mean_prediction(tables)

    def ensemble_of_replicas(self, models: Sequence[nn.Module]) -> EnsembleScore:
        """Returns the score of the mean prediction of the d replicas, of which each rank hosts some. Collective."""
        own = dict(zip(self.world.hosted, models, strict=True))
        tables = (self.world.sum(self._own_logits(own.get(number))) for number in range(self.world.replicas))
        return self._mean_prediction(tables)

    @torch.no_grad()
    def confusion(self, models: Sequence[nn.Module]) -> Tensor:
        """Counts the images of each class (row) that are taken for each class (column): int64, (classes, classes).

        By the mean of the models' logits; all ranks hold them. Collective.
        """
        share = self.world.rank, self.world.size
        counts = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        if len(models) == 1:
            for _, logits, batch in self._forward(models[0], *share):
                counts += _confusion(logits, batch.labels)
        else:
            total = torch.zeros(len(self.batches.split), self.classes, dtype=torch.float64)
            for model in models:
                total += self.world.sum(self.logits(model, *share))
            if self.world.main:  # all ranks have the whole table
                counts += _confusion(total / len(models), self.batches.labels)
        return self.world.sum(counts)

    def _own_logits(self, model: nn.Module | None) -> Tensor:
        if model is None:
            return torch.zeros(len(self.batches.split), self.classes)
        return self.logits(model, self.world.shard, self.world.shards)

    def _mean_prediction(self, tables: Iterable[Tensor]) -> EnsembleScore:
        """Scores the mean of the members' tables of logits, summed in fp64 in the members' order."""
        logits = torch.zeros(len(self.batches.split), self.classes, dtype=torch.float64)
        probabilities = torch.zeros_like(logits)
        members = 0
        for table in tables:
            logits += table
            probabilities += table.double().softmax(dim=1)
            members += 1
        labels = self.batches.labels
        return {
            "logits": self._score(_hits(logits / members, labels, self.classes)[None]),
            "probabilities": self._score(_hits((probabilities / members).log(), labels, self.classes)[None]),
        }

    @torch.no_grad()
    def logits(self, model: nn.Module, first: int, step: int) -> Tensor:
        """Returns logits, (images, classes), fp32, on the CPU; rows of batches that other ranks evaluate are 0."""
        table = torch.zeros(len(self.batches.split), self.classes)
        for number, logits, _ in self._forward(model, first, step):
            rows = self.batches.indices(number)
            table[rows.start : rows.stop] = logits.float().cpu()
        return table

    @torch.no_grad()
    def _table(self, model: nn.Module, first: int, step: int) -> Tensor:
        """Returns (batches, 4), fp64: images right at the first guess, right in five, sum of -log p, images.

        Rows of batches that other ranks evaluate are 0.
        """
        table = torch.zeros(len(self.batches), 4, dtype=torch.float64, device=self.world.device)
        for number, logits, batch in self._forward(model, first, step):
            labels = batch.labels.to(self.world.device, non_blocking=True)
            table[number] = _hits(logits.double(), labels, self.classes)
        return table.cpu()

    def _forward(self, model: nn.Module, first: int, step: int) -> Iterator[tuple[int, Tensor, Batch]]:
        """Yields batch number, logits and batch of every `step`-th batch."""
        numbers = range(first, len(self.batches), step)
        with evaluating(model):
            for number, batch in zip(
                numbers, load(self.batches, numbers, self.workers, self.world.device), strict=True
            ):
                with autocast(self.precision, self.world.device):
                    logits = model(self.normalize(batch.images))
                yield number, logits, batch

    def _score(self, table: Tensor) -> Score:
        *sums, images = sum_in_order(table)
        top1, top5, nll = (torch.stack(sums) / images).tolist()
        score = {"top1": 100 * top1, "top5": 100 * top5, "nll": nll}
        if self.classes < 5:
            del score["top5"]
        return score


def _guesses(logits: Tensor, classes: int) -> Tensor:
    """Returns the five classes of the highest logits, or all if they are fewer, from the highest down."""
    return logits.topk(min(5, classes)).indices


def _confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts the images of each class (row) that are taken for each class (column): int64, (classes, classes)."""
    classes = logits.shape[1]
    pairs = labels.cpu() * classes + _guesses(logits.double(), classes)[:, 0].cpu()
    return pairs.bincount(minlength=classes**2).reshape(classes, classes)


def _hits(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, shape (4,): images right at the first guess, right in five, sum of -log p, images.

    Log-probabilities do as logits.
    """
    hits = _guesses(logits, classes) == labels[:, None]
    nll = cross_entropy(logits, labels, reduction="sum")
    return torch.stack([hits[:, 0].sum(), hits.sum(), nll, nll.new_full((), len(labels))])


def make_evaluator(config: Config, dataset: Dataset, split: Images, world: World) -> Evaluator:
    """Returns the evaluator of one of a dataset's splits, as the config says."""
    normalize = Normalize(dataset.mean, dataset.std, world.device, config.channels_last)
    as_stored = dataset.size == dataset.native and in_memory(split)
    transform = None if as_stored else evaluation_transform(dataset)  # by which the pixels would be the same
    batches = EvaluationBatches(split, transform, config.evaluate.batch_size)
    workers = 0 if in_memory(split) else config.data.workers  # arrays need no decoding
    return Evaluator(batches, dataset.classes, normalize, config.precision, workers, world)


def make_evaluators(config: Config, dataset: Dataset, world: World) -> tuple[Evaluator, Evaluator | None]:
    """Returns the evaluator of the test split, and that of the held-out images if there are any."""
    held_out = dataset.validation
    validation = None if held_out is None else make_evaluator(config, dataset, held_out, world)
    return make_evaluator(config, dataset, dataset.test, world), validation


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode while the block runs, and every module back into its own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def sum_in_order(rows: Tensor) -> Tensor:
    """Sums the rows, first to last: a reduction of torch's own may add them in any order."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row
    return total
