"""A training loop with timm's loader, for `bench train` to stand beside the trainer.

    python -m lookaround_ddp.bench.timm_loop --model resnet8 --data digits --iterations 100

Workers collate bytes, and timm's PrefetchLoader makes them floats and normalizes them on the device, as in train.py.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from timm.data.loader import PrefetchLoader, fast_collate
from torch.utils.data import DataLoader
from torchvision import transforms as T

from lookaround_ddp.bench.bare_loop import Augmented, endless, make_network, make_parser, open_data, train


def main() -> None:
    """Trains, and prints the seconds after the warm-up as JSON."""
    options = make_parser(__doc__).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    data = open_data(options)
    resize = [T.Resize(data.size), T.CenterCrop(data.size)] if data.native is None else []
    crop = T.Compose(
        [*resize, T.RandomCrop(data.size, padding=data.size // 8), T.RandomHorizontalFlip(), T.PILToTensor()]
    )
    loader: DataLoader[Any] = DataLoader(
        Augmented(data.train, crop),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=fast_collate,
    )
    prefetched = PrefetchLoader(loader, mean=data.mean, std=data.std, channels=data.channels, device=device)
    model = make_network(data, options).to(device).to(memory_format=layout)
    print(json.dumps(train(model, endless(prefetched), options, layout)))


if __name__ == "__main__":
    main()
