"""The fastest training loop that one would write by hand, for `bench train` to stand beside the device pipeline.

    python -m lookaround_ddp.bench.batched_loop --model resnet8 --data digits --iterations 100

The images lie on the device as bytes; a batch is cropped and flipped as a whole, each image at a place of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lookaround_ddp.bench.bare_loop import main
from lookaround_ddp.data import Dataset
from lookaround_ddp.data.device import pixels


def batches_on_device(
    data: Dataset, options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields normalized batches for ever, shuffled, each image shifted by up to an eighth of its side and flipped."""
    pad = data.size // 8
    stored = F.pad(pixels(data.train, device), (pad, pad, pad, pad))
    labels = torch.tensor(data.train.labels, device=device)
    mean, std = (torch.tensor(each, device=device).view(1, -1, 1, 1) * 255 for each in (data.mean, data.std))
    places, size = torch.arange(data.size, device=device), options.batch_size
    while True:
        order = torch.randperm(len(stored), device=device)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            rows, columns = torch.randint(2 * pad + 1, (2, size, 1), device=device) + places
            columns = torch.where(torch.rand(size, 1, device=device) < 0.5, columns, columns.flip(1))
            images = stored[chosen[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            yield (images.float() - mean) / std, labels[chosen]


if __name__ == "__main__":
    main(__doc__, batches_on_device)
