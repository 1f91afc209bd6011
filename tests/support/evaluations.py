"""Networks to evaluate, and what a job of any number of ranks measures of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lookaround_ddp.config.schema import AugmentConfig, Config, DataConfig, EvaluateConfig
from lookaround_ddp.data.batches import BatchPlan, Iterations
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.images import Images
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.rendezvous import join
from lookaround_ddp.distributed.world import World
from lookaround_ddp.evaluation.evaluator import make_evaluator
from lookaround_ddp.evaluation.recalibrate import recalibrate
from lookaround_ddp.models.inputs import Normalize

OWN = [["crop"], ["rotation", "none"], ["hflip"], ["vflip"], ["none"], ["perspective"]]  # 7 updates an iteration
SIX = Config(replicas=OWN, evaluate=EvaluateConfig(batch_size=60))  # 797 test images: 13 batches of 60, one of 17
ALONE = World(0, 1, 1, torch.device("cpu"), "none")


def digits() -> Dataset:
    return open_dataset(DataConfig(), seed=0)


def classifier(data: Dataset, scale: float) -> nn.Sequential:
    """Nearest class mean, logit_c = scale * (x . m_c - |m_c|^2 / 2), behind a dropout that evaluation must end."""
    pixels, labels = np.stack([pixel_values(data, data.train, i) for i in range(1000)]), np.array(data.train.labels)
    means = torch.tensor(np.stack([pixels[labels == c].mean(axis=0) for c in range(10)]))
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10))
    model[2].weight.data.copy_(scale * means)
    model[2].bias.data.copy_(-scale * means.square().sum(dim=1) / 2)
    return model


def twisted(data: Dataset, number: int) -> nn.Sequential:
    """Six classifiers that differ: each has forgotten a class, and is surer than the one before."""
    model = classifier(data, 0.01 * (number + 1))
    model[2].bias.data[number] -= 20
    return model


def normed(offset: float) -> nn.Sequential:
    """Two batch-norms, the second behind the first."""
    torch.manual_seed(1)
    first, second = nn.BatchNorm1d(8, momentum=0.3), nn.BatchNorm1d(4, momentum=None)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 8), first, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4), second.eval()
    )
    model[1].bias.data.add_(offset)
    first.weight.data.uniform_(0.5, 2)
    first.bias.data.uniform_(-0.5, 0.5)
    return model


def batches(data: Dataset, replicas: Sequence[int]) -> Iterations:
    """50 images in batches of 16, 16, 16 and 2, of a shuffle of each replica's own."""
    pipelines = {j: train_pipelines(AugmentConfig(), OWN[j], data, 0.0) for j in replicas}
    return Iterations(data.train, BatchPlan(50, 16, seed=0, shared=False), pipelines)


def measure(path: Path, rank: int) -> None:
    """Runs on each rank of any number: what rank 0 keeps must not depend on that number."""
    torch.set_num_threads(1)
    data = digits()
    with join(SIX) as world:
        six = [classifier(data, 0.01 * (j + 1)) for j in world.hosted]
        evaluator = make_evaluator(SIX, data, data.test, world)
        sharded = make_evaluator(SIX, data, data.test, replace(world, replicas=1))  # every rank a shard of it
        kept: dict[str, Any] = {
            "shared": evaluator.shared(classifier(data, 0.02)),
            "replicas": evaluator.replicas(six),
            "sharded": sharded.replicas([classifier(data, 0.02)]),
            "ensemble": evaluator.ensemble_of_replicas([twisted(data, j) for j in world.hosted]),
            "held": evaluator.ensemble(twisted(data, j) for j in range(6)),
            "confusion": evaluator.confusion([classifier(data, 0.02)]).tolist(),
            "confusion of six": evaluator.confusion([twisted(data, j) for j in range(6)]).tolist(),
        }
        for name, offset, iterations in (("near", 0.5, 4), ("far", 3000.0, 40)):
            model, own = normed(offset), batches(data, world.hosted)
            models, normalize = [model] * len(world.hosted), Normalize(data.mean, data.std, world.device, False)
            recalibrate(models, (own[i] for i in range(iterations)), normalize, "fp32", world)
            kept[name] = {key: value.tolist() for key, value in model.state_dict().items()}
        models, own = [normed(0.5) for _ in world.hosted], batches(data, world.hosted)
        recalibrate(models, (own[i] for i in range(4)), normalize, "fp32", world, apart=True)
        kept["apart"] = [state for each in world.gather([m[2].running_var.tolist() for m in models]) for state in each]
        if world.main:
            path.write_text(json.dumps(kept))
    sys.exit()


def pixel_values(data: Dataset, split: Images, index: int) -> np.ndarray:
    pixels = np.asarray(split.image(index), dtype=np.float64) / 255
    return ((pixels - data.mean[0]) / data.std[0]).reshape(-1)
