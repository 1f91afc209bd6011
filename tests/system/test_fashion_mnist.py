"""The real thing: torchrun on real images, from the folder that Debian's package installs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.runs import ROOT, torchrun

pytestmark = [
    pytest.mark.skipif(not os.environ.get("FASHION_MNIST"), reason="FASHION_MNIST=DIR names the folder of its files"),
]
# 3 epochs of 100 iterations; augmentation in each rank, since the ranks already share few cores
SMALL = (
    "epochs=3",
    "model.name=resnet8",
    "data.train_images=3200",
    "data.batch_size=32",
    "data.workers=0",
    "optimizer.lr=0.05",
    "evaluate.every=3",
    "evaluate.replicas=true",
)


def test_some_hundred_iterations_under_torchrun(tmp_path: Path) -> None:
    """Guessing is 10 %; the replicas see each image three times. `evaluate` on one process: the same figures."""
    out = tmp_path / "run"
    config, data = "configs/fashion_mnist/resnet20-lookaround.yaml", f"data.root={os.environ['FASHION_MNIST']}"
    said = torchrun("train", str(ROOT / config), f"out={out}", data, *SMALL, ranks=3)
    assert "300 iterations" in said
    result = json.loads((out / "result.json").read_text())
    assert result["iterations"] == 300
    assert result["mean"]["top1"] > 60
    assert len(result["replicas"]) == 3
    again = torchrun("evaluate", str(out), ranks=1)
    for name, score in (("mean", result["mean"]), *((f"replica {j}", result["replicas"][j]) for j in range(3))):
        line = f"{name} top-1 {score['top1']:.2f} top-5 {score['top5']:.2f} NLL {score['nll']:.4f}"
        assert line in again.splitlines()
