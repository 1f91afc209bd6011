"""Runs for `analyze` to look at, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.runs import TINY, Job

LOOKAROUND = (  # 3 epochs of 5 iterations, and an average step after each; the same starting point as its baseline's
    *TINY,
    "epochs=3",
    "average.k=5",
    "model.seed=0",
    "evaluate.every=1",
    "evaluate.replicas=true",
    "checkpoint.keep=3",
    "record.every=5",
)
SINGLE = (*LOOKAROUND, "replicas=[[crop,rotation,perspective]]")


def analyze(*arguments: str | Path, ranks: int = 1, expect: int = 0) -> str:
    """What rank 0 says."""
    job = Job("analyze", *map(str, arguments), ranks=ranks)
    assert job.wait() == [expect] * ranks, job.said()
    return job.said(0)


def analysis(prefix: Path) -> dict[str, Any]:
    """The numbers that it wrote."""
    return json.loads(prefix.with_name(f"{prefix.name}.json").read_text())


def lines(run: Path, key: str) -> dict[int, Any]:
    """iteration -> what the run's record has under this key."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line[key] for line in every if key in line}


class Point(nn.Module):
    """A network of two parameters and no images: a place in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))
        self.y = nn.Parameter(torch.zeros(1))


def point(x: float, y: float) -> dict[str, torch.Tensor]:
    """Its state at (x, y)."""
    return {"x": torch.tensor([float(x)]), "y": torch.tensor([float(y)])}


class Bowl:
    """Scores such points: the NLL is a x^2 + b y^2; the predictions are which of the bounds x is above."""

    def __init__(self, a: float, b: float, bounds: tuple[float, ...] = ()) -> None:
        self.model, self.a, self.b, self.bounds = Point(), a, b, torch.tensor(bounds)

    def score(self, state: dict[str, torch.Tensor]) -> dict[str, float]:
        x, y = state["x"].item(), state["y"].item()
        nll = self.a * x**2 + self.b * y**2
        return {"top1": 100 - nll, "nll": nll}

    def predictions(self, state: dict[str, torch.Tensor]) -> torch.Tensor:
        return (state["x"] > self.bounds).long()
