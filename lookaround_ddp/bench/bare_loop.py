"""The training loop that one would write by hand, for `bench train` to stand beside the trainer.

    python -m lookaround_ddp.bench.bare_loop --model resnet8 --data digits --iterations 100

It shares with the trainer the network and the stored images, and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from lookaround_ddp.config import DataConfig, ModelConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.images import Images
from lookaround_ddp.models import create_model


class Augmented(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: Images, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, images.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images.image(index)), self.labels[index]


def main() -> None:
    """Trains, and prints the images per second after the warm-up as JSON."""
    options = _parser().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    data = open_dataset(DataConfig(name=options.data, root=options.root, train_images=options.train_images), seed=0)
    resize = [T.Resize(data.size), T.CenterCrop(data.size)] if data.native is None else []
    crop = [*resize, T.RandomCrop(data.size, padding=data.size // 8), T.RandomHorizontalFlip()]
    loader = DataLoader(
        Augmented(data.train, T.Compose([*crop, T.ToTensor(), T.Normalize(data.mean, data.std)])),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = create_model(ModelConfig(name=options.model), data.classes, data.channels)
    model = model.to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    total, start = torch.zeros((), device=device), _now(device)
    for iteration, (images, labels) in enumerate(itertools.islice(_endless(loader), options.iterations), start=1):
        images = images.to(device, non_blocking=True, memory_format=layout)
        loss = cross_entropy(model(images), labels.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
        if iteration == options.warm_up:
            start = _now(device)
    speed = (options.iterations - options.warm_up) * options.batch_size / (_now(device) - start)
    print(json.dumps({"images_per_second": speed, "loss": total.item() / options.iterations}))


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default="data")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--channels-last", action="store_true")
    return parser


if __name__ == "__main__":
    main()
