"""Batch-norm's running statistics, measured anew over the training data: exact, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lookaround_ddp.data import Batch
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluation.evaluator import evaluating, sum_in_order
from lookaround_ddp.models import Normalize, autocast

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def recalibrate(
    models: Sequence[nn.Module],
    batches: Iterable[list[list[Batch]]],
    normalize: Normalize,
    precision: str,
    world: World,
    *,
    apart: bool = False,
) -> None:
    """Sets running means and variances to those of the activations over all images of these batches. Collective.

    With n elements of mean m and variance v in a batch, a channel's moments over all batches are
    mean = sum n m / N and variance = sum n (v + (m - mean)^2) / (N - 1): sums, not a running mean. Each replica
    has a row of sums and the rows are added in order, so the result depends on neither the order of the batches
    nor on which ranks host the replicas.

    Args:
        models: a model for each replica that this rank hosts; the same one several times if it is the mean of all.
        batches: for each iteration, for each replica that this rank hosts, a batch of each augmentation.
        apart: each model is measured over the batches of its own replica alone.
    """
    norms = [[m for m in model.modules() if _has_statistics(m)] for model in models]
    if not norms[0]:
        return
    width = sum(_width(norm) for norm in norms[0])
    rows = torch.zeros(world.replicas, width, dtype=torch.float64, device=world.device)
    for hosted in batches:
        for number, model, own, updates in zip(world.hosted, models, norms, hosted, strict=True):
            for batch in updates:
                with evaluating(model), _measuring(own) as moments, autocast(precision, world.device):
                    model(normalize(batch.images))
                rows[number] += torch.cat(moments)
    rows = world.sum(rows.cpu())
    if apart:
        for number, own in zip(world.hosted, norms, strict=True):
            _set_statistics(own, rows[number])
    else:
        total = sum_in_order(rows)
        for own in norms:
            _set_statistics(own, total)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.track_running_stats


def _width(norm: Any) -> int:
    """Returns the length of a norm's moments: elements of a channel, then each channel's sum and sum of squares."""
    return 1 + 2 * norm.num_features


@contextmanager
def _measuring(norms: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Makes the norms use each batch's own statistics; the list sums the moments of their inputs, fp64.

    Running statistics and the count of batches stay what they were.
    """
    result = [norm.running_mean.new_zeros(_width(norm), dtype=torch.float64) for norm in norms]
    place = {id(norm): moments for norm, moments in zip(norms, result, strict=True)}

    def measure(norm: Any, inputs: tuple[Tensor]) -> None:
        values = inputs[0].float()
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        mean, variance = mean.double(), variance.double()
        count = values.numel() // values.shape[1]
        place[id(norm)] += torch.cat([mean.new_tensor([count]), count * mean, count * (variance + mean**2)])

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.track_running_stats = False  # with it, torch would move the buffers
        yield result
    finally:
        for norm, hook in zip(norms, hooks, strict=True):
            hook.remove()
            norm.track_running_stats = True


def _set_statistics(norms: Sequence[Any], row: Tensor) -> None:
    for norm, moments in zip(norms, row.split([_width(norm) for norm in norms]), strict=True):
        count, total, squares = moments.split([1, norm.num_features, norm.num_features])
        if count > 1:  # else no image passed through it
            mean = total / count
            norm.get_buffer("running_mean").copy_(mean)
            norm.get_buffer("running_var").copy_(((squares - count * mean**2) / (count - 1)).clamp(min=0))
