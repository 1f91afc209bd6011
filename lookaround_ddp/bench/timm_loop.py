"""A training loop with timm's loader, for `bench train` to stand beside the trainer.

    python -m lookaround_ddp.bench.timm_loop --model resnet8 --data digits --iterations 100

Workers collate bytes, and timm's PrefetchLoader makes them floats and normalizes them on the device, as in train.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from timm.data.loader import PrefetchLoader, fast_collate

from lookaround_ddp.bench.bare_loop import endless, main, make_loader
from lookaround_ddp.data import Dataset


def batches_of_timm(data: Dataset, options: argparse.Namespace, device: torch.device) -> Iterator[Any]:
    """Yields batches for ever, normalized on the device."""
    loader = make_loader(data, options, device, fast_collate)
    return endless(PrefetchLoader(loader, mean=data.mean, std=data.std, channels=data.channels, device=device))


if __name__ == "__main__":
    main(__doc__, batches_of_timm)
