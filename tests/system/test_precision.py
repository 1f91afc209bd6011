"""The same training in another precision or layout, compiled, and with steps that a scaler skips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lookaround_ddp.config.schema import Config
from lookaround_ddp.training.replica import Replica
from tests.support.runs import TINY, Job, train, weights

# 10 iterations, so short that rounding hardly grows
CONFIG = (*TINY, "data.pipeline=workers", "model.width=16", "optimizer.lr=0.01")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("plain") / "run"
    train(out, *CONFIG)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    ("setting", "tolerance"),
    [("channels_last=true", 2e-4), ("compile=true", 2e-4), ("precision=bf16", 0.02), ("precision=fp16", 5e-3)],
)
def test_the_same_training_another_way(
    plain: dict[str, Tensor], tmp_path: Path, setting: str, tolerance: float
) -> None:
    """Same names, nearly the same weights; but other bits, so the setting did something."""
    train(tmp_path / "run", *CONFIG, setting)
    other = load_file(tmp_path / "run" / "model.safetensors")
    assert list(other) == list(plain)
    differences = []
    for name, value in plain.items():
        assert other[name].dtype == value.dtype
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance, msg=name)
            differences.append((other[name] - value).abs().max().item())
    assert max(differences) > 0


def overflow(only: int, rank: int) -> None:
    """Makes the scaler of one replica begin so high that its first updates overflow and are skipped."""
    original = Replica.__init__

    def patched(self: Replica, config: Config, number: int, *rest: Any) -> None:
        original(self, config, number, *rest)
        if number == only:
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)

    Replica.__init__ = patched


def test_steps_that_a_scaler_skips_on_one_replica_do_not_shift_its_averages(tmp_path: Path) -> None:
    for ranks in (1, 3):
        out = tmp_path / f"{ranks}"
        job = Job("train", f"out={out}", *TINY, "precision=fp16", ranks=ranks, prepare=partial(overflow, 1))
        assert job.wait() == [0] * ranks, job.said()
    train(tmp_path / "other", *TINY, "precision=fp16")
    assert weights(tmp_path / "1") == weights(tmp_path / "3") != weights(tmp_path / "other")
