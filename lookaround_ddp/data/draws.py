"""Random numbers for a batch of images, each a function of its key, its image and its place among the draws.

A counter-based generator: what an image draws depends on neither the images beside it nor the batches before, and a
whole batch draws at once. The worker pipeline reaches the same by seeding torch's generator for every image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lookaround_ddp import seeds

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the step of SplitMix64's counter, as int64


FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64  # the multipliers of SplitMix64's finalizer


class Draws:
    """A stream of random numbers for each image of a batch.

    Computed on the CPU, where the batch's indices are: which images take an operation is then known without waiting
    for the device. Integers alone make the bits, so any machine draws the same.
    """

    def __init__(self, key: tuple[int, ...], images: Tensor) -> None:
        # int64, (images,): where the counter of each image starts
        self.streams = scrambled((images + 1) * GOLDEN + seeds.derive(*key))
        self.taken = 0

    def uniform(self, count: int) -> Tensor:
        """Draws the next `count` numbers of each image from [0, 1): fp64, (images, count)."""
        places = torch.arange(self.taken + 1, self.taken + count + 1) * GOLDEN
        self.taken += count
        return _shifted(scrambled(self.streams[:, None] + places), 11).double() * 2.0**-53

    def integers(self, *bounds: int) -> Tensor:
        """Draws for each image and each bound an integer from 0 to bound - 1: int64, (images, bounds)."""
        return (self.uniform(len(bounds)) * torch.tensor(bounds, dtype=torch.float64)).long()

    def chosen(self, probability: float) -> Tensor:
        """Chooses each image with this probability; returns the places of those chosen in the batch: int64, (m,)."""
        return (self.uniform(1)[:, 0] < probability).nonzero()[:, 0]


def scrambled(values: Tensor) -> Tensor:
    """Scrambles int64 values by SplitMix64's finalizer (Steele, Lea and Flood, 2014).

    Every bit of a result depends on all bits of its value. Products wrap around at 64 bits, as they should.
    """
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifts int64 values to the right and fills in zeros from the left, where torch's own shift copies the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
