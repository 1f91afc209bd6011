"""The mean of the same elements of all replicas, and how far from it each replica is.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**17  # on a CPU the fp64 sum stays in the cache


def blocks(flat: Tensor) -> tuple[Tensor, ...]:
    """The parts of a one-dimensional tensor that are summed at a time; all of it on a GPU."""
    return flat.split(BLOCK_ELEMENTS) if flat.device.type == "cpu" else (flat,)


def mean_of(values: Sequence[Tensor], total: Tensor) -> Tensor:
    """In fp64, in the memory of `total`, which is made to fit."""
    if values[0].dtype == torch.float64:  # no wider type to sum in: from an offset, equal replicas still change nothing
        total.resize_(values[0].shape).zero_()
        for value in values[1:]:
            total += value - values[0]
        return torch.where(total == 0, values[0], values[0] + total / len(values))  # -0.0 stays -0.0
    total.resize_(values[0].shape).copy_(values[0])
    for value in values[1:]:
        total += value
    return total.div_(len(values))


def squared_distance(value: Tensor, center: Tensor) -> Tensor:
    """Of a block to its mean; shape (), fp32."""
    delta = (value - center).float()
    return torch.dot(delta, delta)
