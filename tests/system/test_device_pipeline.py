"""A training whose batches are made on the device: the same bits on any ranks, and over a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.schema import DataConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.state import check_resumable
from tests.support.runs import TINY, resumes, train, weights

ON_DEVICE = (  # a single network for the first of two epochs
    *TINY,
    "data.pipeline=device",
    "augment.before=[crop]",
    "replicas=[[randaugment],[rotation,hflip],[perspective+mixup]]",
    "average.start=1",
    "average.before_start=single",
    "evaluate.recalibrate=true",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on one rank."""
    out = tmp_path_factory.mktemp("device") / "run"
    train(out, *ON_DEVICE)
    return out


def test_three_ranks_have_the_same_bits_as_one(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", *ON_DEVICE, ranks=3)
    assert weights(tmp_path / "run") == weights(run)


def test_a_killed_run_goes_on_by_itself_on_other_ranks_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    auto = [*ON_DEVICE, "data.pipeline=auto", "checkpoint.every=0.4"]
    after, _ = resumes(out, *auto, ranks=3, killed_at=7, only=1, on=1)
    assert after == 6
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["pipeline"] == "device"
    assert weights(out) == weights(run)


def test_a_run_does_not_go_on_with_the_other_pipeline(run: Path) -> None:
    said = train(run, *ON_DEVICE, "data.pipeline=workers", expect=2)
    assert "made with another config (data.pipeline: device -> workers)" in said


def test_a_checkpoint_from_before_the_choice_was_the_workers() -> None:
    data = open_dataset(DataConfig(), 0)
    config = load_config(None, [])
    made = config.identity()
    del made["data"]["pipeline"]
    state = {"classes": 10, "trained_on": data.trained_on, "config": made}
    check_resumable(config, data, state)
    with pytest.raises(UserError, match=r"data\.pipeline: workers -> device"):
        check_resumable(load_config(None, ["data.pipeline=device"]), data, state)
