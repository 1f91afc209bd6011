"""The trained weights depend on the config, not on the processes: one SHA-256 of model.safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.runs import TINY, torchrun, train, weights

SIX = [*TINY, "replicas=[[crop],[rotation],[perspective],[randaugment],[hflip],[autoaugment]]", "model.dropout=0.3"]
THREE = [*TINY, "data.pipeline=workers", "replicas=[[crop],[rotation],[perspective+hflip]]", "model.dropout=0.3"]


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("placement")
    runs = {
        "six on 1": (SIX, 1),
        "six on 2": (SIX, 2),
        "six on 3": (SIX, 3),
        "six on 4": (SIX, 4),  # 2, 2, 1 and 1
        "six on 6": (SIX, 6),
        "three, no workers": (THREE, 3),
        "three, two workers": ([*THREE, "data.workers=2"], 3),
        "three, another seed": ([*THREE, "seed=1"], 3),
    }
    for number, (overrides, ranks) in enumerate(runs.values()):
        train(folder / str(number), *overrides, ranks=ranks)
    return {name: folder / str(number) for number, name in enumerate(runs)}


def test_six_replicas_on_1_2_3_4_and_6_processes(placed: dict[str, Path]) -> None:
    hashes = {weights(placed[f"six on {ranks}"]) for ranks in (1, 2, 3, 4, 6)}
    assert len(hashes) == 1


def test_loader_workers_change_nothing(placed: dict[str, Path]) -> None:
    without = weights(placed["three, no workers"])
    assert weights(placed["three, two workers"]) == without


def test_the_hash_does_depend_on_what_matters(placed: dict[str, Path]) -> None:
    assert weights(placed["three, another seed"]) != weights(placed["three, no workers"])


def test_scores_are_the_same_on_any_number_of_processes(placed: dict[str, Path]) -> None:
    """Every test image is counted once: 797 is prime, so any padding or share of its own would show."""
    lines = [(placed[f"six on {ranks}"] / "metrics.jsonl").read_text().splitlines() for ranks in (1, 2, 3, 4, 6)]
    scores = {line for each in lines for line in each if '"mean"' in line}
    assert len(scores) == 2  # an evaluation's, and those of the end


def test_torchrun_changes_nothing(placed: dict[str, Path], tmp_path: Path) -> None:
    torchrun("train", f"out={tmp_path}/run", *THREE, ranks=3)
    assert weights(tmp_path / "run") == weights(placed["three, no workers"])


def test_two_data_parallel_ranks_per_replica(tmp_path: Path) -> None:
    """W = 6, d = 3, without batch-norm: DDP's gradient of halves is the gradient of the whole, up to rounding."""
    config = [
        *TINY,
        "model.name=timm:resnet10t",
        "model.width=16",  # not for this network
        "model.options={norm_layer: groupnorm1, stem_width: 4, channels: [4, 8, 8, 16]}",
        "replicas=[[crop],[rotation],[perspective]]",
        "optimizer.lr=0.02",
        "channels_last=false",
    ]
    for ranks in (3, 6):
        train(tmp_path / str(ranks), *config, ranks=ranks)
    three, six = (load_file(tmp_path / str(ranks) / "model.safetensors") for ranks in (3, 6))
    start = {name: value for name, value in three.items() if value.is_floating_point()}
    assert max((value - six[name]).abs().max().item() for name, value in start.items()) < 1e-5
    assert all(torch.isfinite(value).all() for value in six.values())
