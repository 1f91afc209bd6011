"""Random numbers for a batch of images, each a function of its key, its image and its place among the draws.

A counter-based generator: what an image draws depends on neither the images beside it nor the batches before, and a
whole batch draws at once. The worker pipeline reaches the same by seeding torch's generator for every image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lookaround_ddp import seeds

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the step of SplitMix64's counter, as int64


FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64  # its multipliers


class Draws:
    """A stream of random numbers for each image of a batch.

    Computed on the CPU, where the batch's indices are: which images take an operation is then known without waiting
    for the device. Integers alone make the bits, so any machine draws the same.
    """

    def __init__(self, key: tuple[int, ...], images: Tensor) -> None:
        self.streams = mixed((images + 1) * GOLDEN + seeds.derive(*key))  # one for each image, int64
        self.taken = 0

    def uniform(self, count: int) -> Tensor:
        """The next `count` draws of each image, from [0, 1): fp64, (images, count)."""
        places = torch.arange(self.taken + 1, self.taken + count + 1) * GOLDEN
        self.taken += count
        return _shifted(mixed(self.streams[:, None] + places), 11).double() * 2.0**-53

    def integers(self, *bounds: int) -> Tensor:
        """For each bound a draw from 0 to bound - 1: int64, (images, bounds)."""
        return (self.uniform(len(bounds)) * torch.tensor(bounds, dtype=torch.float64)).long()

    def chosen(self, probability: float) -> Tensor:
        """The places in the batch of the images that something of this probability befalls."""
        return (self.uniform(1)[:, 0] < probability).nonzero()[:, 0]


def mixed(values: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014) of int64: every bit depends on all; products wrap."""
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: torch's shift copies the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
