"""In a round, the average step included, the host never waits for the device, so that a GPU is never idle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config
from lookaround_ddp.data.batches import BatchPlan, Iterations
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.world import World
from lookaround_ddp.training.progress import Losses
from lookaround_ddp.training.replica import Replica
from lookaround_ddp.training.setup import make_lookaround
from tests.support.waits import waits

K = 3
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp16, clipped": {"precision": "fp16", "optimizer": {"clip_norm": 1.0}},
    "AdamW": {"optimizer": {"name": "adamw", "lr": 1e-3}},
    "SAM": {"optimizer": {"sam": {"rho": 0.05}}},
    "ASAM in fp16": {"precision": "fp16", "optimizer": {"sam": {"rho": 0.05, "adaptive": True}}},
    "Lookahead": {"optimizer": {"lookahead": {"k": K}}},
    "an outer optimizer": {"average": {"k": K, "outer": {}}},
    "mixed, smoothed": {"replicas": [["mixup"], ["cutmix"]], "label_smoothing": 0.1},
}


@contextmanager
def refused_on_a_gpu() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Rounds:
    """Two replicas that this process hosts, and their first iterations."""

    def __init__(self, device: str, values: dict[str, Any]) -> None:
        config = make_config({"replicas": [["none"], ["hflip"]], "average": {"k": K}, **values})
        world = World(rank=0, size=1, replicas=2, device=torch.device(device), backend="none")
        digits = open_dataset(Config().data, seed=0)
        pipelines = {
            number: train_pipelines(config.augment, own, digits, config.label_smoothing)
            for number, own in enumerate(config.replicas)
        }
        batches = Iterations(digits.train, BatchPlan(100, 20, 0, True), pipelines)
        self.batches = [batches[iteration] for iteration in range(2 * K)]
        self.replicas = [Replica(config, number, digits, world) for number in range(2)]
        self.losses = Losses(config, batches, world, 0)
        self.around = make_lookaround(config, self.replicas, batches.plan.iterations, world)

    def run(self, iterations: range) -> None:
        for iteration in iterations:
            losses = []
            for replica, own in zip(self.replicas, self.batches[iteration], strict=True):
                losses.append(replica.step(own, iteration, 0.1))
            self.losses.count(losses)
            self.around.step()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_inside_a_round_asks_for_a_number(kind: str) -> None:
    rounds = Rounds("cpu", KINDS[kind])
    rounds.around._average.later = True  # as on a GPU
    rounds.run(range(K))
    rounds.around.look()  # of which the host of a GPU has heard by then
    with waits() as found:
        rounds.run(range(K, 2 * K))
    assert found == []
    for ask in (rounds.losses.check, rounds.around.check_finite, torch.ones(()).item, torch.ones(2).tolist):
        with waits() as found:
            ask()
        assert found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_not_waited_for_inside_a_round(kind: str) -> None:
    rounds = Rounds("cuda", KINDS[kind])
    rounds.run(range(K))
    with refused_on_a_gpu():
        rounds.run(range(K, 2 * K))
