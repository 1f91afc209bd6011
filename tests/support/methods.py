"""Short runs of every method, and what they leave."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.runs import train

# 4 epochs of 5 iterations; rounds end after 3, 6, 9, 12, 15, 18; a checkpoint after every second iteration
TINY = ("data.train_images=80", "data.batch_size=16", "epochs=4", "average.k=3", "model.width=4")
TINY = (*TINY, "evaluate.every=2", "checkpoint.every=0.4", "checkpoint.keep=99")
TWO = "replicas=[[crop],[rotation]]"
ONE = "replicas=[[crop,rotation]]"

SEVERAL = {  # methods of two replicas: on 1 and 2 ranks the same bits
    "sam": ("optimizer.sam={}",),
    "asam": ("optimizer.sam={adaptive: true, rho: 0.5}",),
    "swa": ("trajectory={name: swa, start: 1, every: 4, swa_lr: 0.05, anneal_epochs: 1}",),
    "swad": ("trajectory={name: swad, every: 2}", "data.validation=40"),
    "ema": ("trajectory={name: ema, decay: 0.8}",),
    "ensemble": ("average.k=never",),
    "ensemble-swa": ("average.k=never", "trajectory={name: swa, start: 2}", "data.validation=40"),
    "dart": ("average.start=2", "average.before_start=single", "average.k=epoch"),
    "dart-in-turn": ("average.start=2", "average.before_start=single_in_turn", "average.k=1 epoch"),
    "lookahead-around": ("optimizer.lookahead={k: 3, momentum: reset}",),
    "dart-snapshots": (  # the first cycle ends while a single network trains
        *("average.start=3", "average.before_start=single", "average.k=5"),
        "snapshots=true",
        "schedule.cycles=2",
        "evaluate.every=4",
    ),
    "k-over-time": (  # rounds end after 5, 10, 14, 18
        "average.k=[[0, epoch], [2, 4]]",
        "trajectory={name: swa, start: 2, every: 2}",
        "record.every=1",
    ),
    "iterations": ("iterations=17", "record.every=1", "schedule.warmup_epochs=1"),
    "ensemble-ema": ("average.k=never", "trajectory={name: ema, decay: 0.8}"),
    "snapshots-around": ("snapshots=true", "schedule.cycles=2", "evaluate.recalibrate=true"),
}
ALONE = {  # methods of one network, on one rank or on two that share its batches
    "lookahead": ("optimizer.lookahead={k: 3, momentum: pullback}",),
    "swad": ("trajectory={name: swad, every: 2}", "data.validation=40"),
    "ema": ("trajectory={name: ema, decay: 0.8}",),  # of statistics that each rank has of its own share
    "all": (
        "optimizer={sam: {}, lookahead: {}}",
        "trajectory={name: swa, start: 2}",
        "snapshots=true",
        "schedule.cycles=3",
    ),
}


def left(run: Path) -> dict[str, Any]:
    """Digests of all models, and the result without what depends on the machine."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors"))}
    result = json.loads((run / "result.json").read_text())
    for key in ("seconds", "total_seconds", "processes", "digest"):
        del result[key]
    del result["files"]["metrics.jsonl"]
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} | result


def undisturbed(runs: Path, name: str, values: tuple[str, ...], ranks: int = 1) -> Path:
    run = runs / f"{name}-{ranks}"
    if not run.exists():
        train(run, *TINY, *values, ranks=ranks)
    return run


def several(runs: Path, method: str) -> Path:
    return undisturbed(runs, method, (TWO, *SEVERAL[method]))


def alone(runs: Path, method: str, *values: str) -> Path:
    return undisturbed(runs, f"one-{method}", (ONE, *ALONE.get(method, ()), *values))


def checkpoint(run: Path, iteration: int, replica: int = 0) -> dict[str, Tensor]:
    """A replica's weights just before the average step of this iteration."""
    path = run / "checkpoints" / str(iteration) / f"replica-{replica}.pt"
    return torch.load(path, weights_only=True)["model"]


def record(run: Path, key: str) -> list[dict[str, Any]]:
    """The lines of the run's record that have this key."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if key in line]


def check_mean(found: dict[str, Tensor], states: list[dict[str, Tensor]]) -> None:
    """Parameters are the mean of these states'; they do not move so slowly that any other mean would do."""
    names = [name for name in found if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert len(names) > 10
    for name in names:
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(found[name].double(), mean, rtol=0, atol=2e-6, msg=name)
    assert max((states[0][name] - states[-1][name]).abs().max().item() for name in names) > 1e-3
