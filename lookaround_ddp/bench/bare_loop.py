"""The training loop that one would write by hand, for `bench train` to stand beside the trainer.

    python -m lookaround_ddp.bench.bare_loop --model resnet8 --data digits --iterations 100

It shares with the trainer the network and the stored images, and nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from lookaround_ddp.bench.figures import now
from lookaround_ddp.config import DataConfig, ModelConfig
from lookaround_ddp.data import Images, datasets
from lookaround_ddp.models import create_model


class Augmented(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, images: Images, transform: Callable[[Any], torch.Tensor]) -> None:
        self.images, self.labels, self.transform = images, images.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images.image(index)), self.labels[index]


def main(
    description: str | None, batches_of: Callable[[datasets.Dataset, argparse.Namespace, torch.device], Iterator[Any]]
) -> None:
    """Trains on these batches, and prints the seconds after the warm-up as JSON."""
    options = make_parser(description).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    data = open_data(options)
    batches = batches_of(data, options, device)
    model = make_network(data, options).to(device).to(memory_format=layout)
    print(json.dumps(train_bare(model, batches, options, layout)))


def train_bare(
    model: nn.Module, batches: Iterator[Any], options: argparse.Namespace, layout: torch.memory_format
) -> dict[str, float]:
    """Trains; returns the seconds after the warm-up, and the mean loss."""
    device = next(model.parameters()).device
    optimizer = make_optimizer(model)
    total, start = torch.zeros((), device=device), now(device)
    for iteration in range(1, options.iterations + 1):
        total += update(model, optimizer, next(batches), layout, options.precision)
        if iteration == options.warm_up:
            start = now(device)
    return {"seconds": now(device) - start, "loss": total.item() / options.iterations}


def open_data(options: argparse.Namespace) -> datasets.Dataset:
    config = DataConfig(name=options.data, root=options.root, train_images=options.train_images, size=options.size)
    return datasets.open_dataset(config, seed=0)


def batches_by_image(data: datasets.Dataset, options: argparse.Namespace, device: torch.device) -> Iterator[Any]:
    """Yields batches for ever, made image by image."""
    return endless(make_loader(data, options, device))


def make_loader(
    data: datasets.Dataset,
    options: argparse.Namespace,
    device: torch.device,
    collate: Callable[[Any], Any] | None = None,
) -> DataLoader[Any]:
    """Makes a loader of normalized floats; with `collate`, of the bytes that it collates."""
    resize = [T.Resize(data.size), T.CenterCrop(data.size)] if data.native is None else []
    crop = [*resize, T.RandomCrop(data.size, padding=data.size // 8), T.RandomHorizontalFlip()]
    last = [T.ToTensor(), T.Normalize(data.mean, data.std)] if collate is None else [T.PILToTensor()]
    return DataLoader(
        Augmented(data.train, T.Compose([*crop, *last])),
        batch_size=options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
    )


def make_network(data: datasets.Dataset, options: argparse.Namespace) -> nn.Module:
    torch.backends.cudnn.benchmark = options.fast_kernels
    model = create_model(ModelConfig(name=options.model), data.classes, data.channels).train()
    if options.compile:
        model.compile()
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    layout: torch.memory_format,
    precision: str = "fp32",
) -> torch.Tensor:
    """Takes one step of one network; returns its loss, 0-dim."""
    images, labels = batch
    device = next(model.parameters()).device
    images = images.to(device, non_blocking=True, memory_format=layout)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = model(images)
    loss = cross_entropy(logits.float(), labels.to(device, non_blocking=True))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--root", default="data")
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--size", type=int)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--fast-kernels", action="store_true")
    return parser


if __name__ == "__main__":
    main(__doc__, batches_by_image)
