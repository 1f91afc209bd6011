"""Algorithm 1 on a linear model in numpy, for those who train the same with other libraries."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor, nn

K, RATE, BATCH, EPOCHS = 3, 0.1, 5, 2
IMAGES, LABELS = (torch.from_numpy(np.random.default_rng(n).normal(size=(20, n)).astype(np.float32)) for n in (3, 2))
STEPS = EPOCHS * len(IMAGES) // BATCH


def images_of(rank: int) -> Tensor:
    """A rank's own augmentation: it moves the images."""
    return IMAGES + 0.5 * rank


def network(rank: int) -> nn.Linear:
    """Each rank begins with other weights: those of rank 0 count."""
    torch.manual_seed(rank)
    return nn.Linear(3, 2)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def means(ranks: int) -> np.ndarray:
    """The mean of the replicas' weights after each step, and an average step where one is due: (STEPS, 8)."""
    weight, bias = (value.detach().double().numpy() for value in network(0).parameters())
    replicas = [(weight.copy(), bias.copy()) for _ in range(ranks)]
    found = []
    for step in range(STEPS):
        rows = slice(step * BATCH % 20, step * BATCH % 20 + BATCH)
        labels = LABELS[rows].double().numpy()
        for rank, (weight, bias) in enumerate(replicas):
            images = images_of(rank)[rows].double().numpy()
            error = images @ weight.T + bias - labels  # of the mean squared error over 5 x 2 values
            replicas[rank] = (weight - RATE * 2 / 10 * error.T @ images, bias - RATE * 2 / 10 * error.sum(0))
        mean = tuple(np.mean(each, axis=0) for each in zip(*replicas, strict=True))
        if (step + 1) % K == 0:
            replicas = [mean] * ranks
        found.append(np.concatenate([mean[0].ravel(), mean[1]]))
    return np.array(found)


def as_under_torchrun(rank: int, ranks: int) -> None:
    """Tells a process, which is in a group already, what torchrun would."""
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{ranks}", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{ranks}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
