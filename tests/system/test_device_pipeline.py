"""A training whose batches are made on the device: the same bits on any ranks, and over a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lookaround_ddp.checkpoint import check_shipped, run_config, write_config, write_result
from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.schema import DataConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.files import remove
from lookaround_ddp.training.setup import set_up
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


def test_what_was_begun_by_workers_goes_on_by_them(tmp_path: Path) -> None:
    """With the default, which is the device for a new run; so does what began before there was a choice."""
    data = open_dataset(DataConfig(), 0)
    workers = load_config(None, ["data.pipeline=workers"])
    made = workers.identity()
    del made["data"]["pipeline"]
    state = {"classes": 10, "trained_on": data.trained_on, "config": made}
    check_resumable(workers, data, state)
    with pytest.raises(UserError, match=r"data\.pipeline: workers -> device"):
        check_resumable(load_config(None, ["data.pipeline=device"]), data, state)

    values = [f"out={tmp_path}", *TINY, "replicas=[[crop],[crop]]"]
    alone = World(0, 1, 2, torch.device("cpu"), "none")
    assert set_up(load_config(None, values), alone).config.data.pipeline == "device"
    whole = load_config(None, [*values, "data.pipeline=workers"])
    began = set_up(whole, alone)
    began.checkpoints.begin(5, {}, {"config": whole.identity()})
    began.checkpoints.finish()
    later = set_up(load_config(None, values), alone)
    assert later.config.data.pipeline == "workers"
    assert torch.equal(later.batches[7][0][0].images, began.batches[7][0][0].images)

    write_config(whole, alone)
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["data"]["pipeline"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert run_config(tmp_path).data.pipeline == "workers"
    write_result(whole, {"best": None})
    remove(tmp_path / "checkpoints")
    assert set_up(load_config(tmp_path / "config.yaml"), alone).config.data.pipeline == "workers"
    check_shipped(run_config(tmp_path))
