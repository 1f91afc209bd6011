"""Lookaround the way its authors' published code goes about it, for `bench train` to stand beside the trainer.

    python -m lookaround_ddp.bench.original_loop --model resnet8 --data digits --iterations 100

One process. An iteration trains d networks one after the other, each on the batches of a loader of its own; after
every k iterations all of them take the mean of their state dicts.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence

import torch
from torch import nn

from lookaround_ddp.bench.bare_loop import (
    endless,
    make_loader,
    make_network,
    make_optimizer,
    make_parser,
    open_data,
    update,
)
from lookaround_ddp.bench.figures import now


def main() -> None:
    """Trains, and prints the seconds after the warm-up as JSON."""
    seconds, loss, _ = train_original(parse_options())
    print(json.dumps({"seconds": seconds, "loss": loss}))


def train_original(options: argparse.Namespace) -> tuple[float, float, list[nn.Module]]:
    """Trains; returns the seconds after the warm-up, the mean loss of all updates, and the networks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    data = open_data(options)
    streams = [endless(make_loader(data, options, device)) for _ in range(options.replicas)]
    start_point = make_network(data, options).to(device).to(memory_format=layout)
    models = [copy.deepcopy(start_point) for _ in streams]
    optimizers = [make_optimizer(model) for model in models]
    total, start = torch.zeros((), device=device), now(device)
    for iteration in range(1, options.iterations + 1):
        for model, optimizer, batches in zip(models, optimizers, streams, strict=True):
            total += update(model, optimizer, next(batches), layout, options.precision)
        if iteration % options.k == 0:
            average_models(models)
        if iteration == options.warm_up:
            start = now(device)
    return now(device) - start, total.item() / (options.iterations * options.replicas), models


def average_models(models: Sequence[nn.Module]) -> None:
    """Loads the mean of the models' state dicts into each of them; counters, which are integers, are rounded down."""
    states = [model.state_dict() for model in models]
    mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
    for model in models:
        model.load_state_dict(mean)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--k", type=int, default=5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
