"""The mean of the same elements of all replicas, and how far from it each replica is.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**15  # on a CPU the fp64 sums stay in the cache; half and twice as many take a fifth longer


def blocks(flat: Tensor) -> tuple[Tensor, ...]:
    """Returns the parts of a one-dimensional tensor that are summed at a time; all of it on a GPU."""
    return flat.split(BLOCK_ELEMENTS) if flat.device.type == "cpu" else (flat,)


def block_bounds(size: int) -> Iterator[tuple[int, int]]:
    """Yields where these parts begin and end, on a CPU."""
    for start in range(0, size, BLOCK_ELEMENTS):
        yield start, min(start + BLOCK_ELEMENTS, size)


class Scratch:
    """Memory for fp64 sums and differences that is reused for each block.

    Allocating it anew for each block would cost time and fragment the heap.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._total, self._term = (torch.empty(0, dtype=torch.float64, device=device) for _ in range(2))
        self._rounded, self._delta = (torch.empty(0, dtype=dtype, device=device) for _ in range(2))

    def mean_of(self, values: Sequence[Tensor]) -> Tensor:
        """Returns the mean in fp64, in memory that the next call reuses."""
        first, count = values[0], len(values)
        total = self._total.resize_(first.shape)
        if first.dtype == torch.float64:  # no wider type to sum in: from an offset, equal replicas still change nothing
            total.zero_()
            for value in values[1:]:
                total += value - first
            return torch.where(total == 0, first, first + total / count)  # -0.0 stays -0.0
        total.copy_(first)
        for value in values[1:]:
            total += value if value.device.type == "cuda" else self._term.resize_(first.shape).copy_(value)
        return total.div_(count)

    def rounded(self, mean: Tensor) -> Tensor:
        """Returns the mean rounded to the replicas' dtype, in memory that the next call reuses."""
        return self._rounded.resize_(mean.shape).copy_(mean)

    def squared_distance(self, value: Tensor, center: Tensor) -> Tensor:
        """Returns the squared L2 distance of a block to its mean; shape (), fp32."""
        delta = torch.sub(value, center, out=self._delta.resize_(value.shape)).float()
        return torch.dot(delta, delta)
