"""What ranks would refuse is found before they start."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lookaround_ddp.checkpoint.run_folder import locked
from lookaround_ddp.config.load import load_config
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.preflight import run_preflight
from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT, TINY, Job, train

REFUSED = {
    "optimizer.lookahead.k=7": "optimizer.lookahead.k is 7 and a round has 3 updates",
    "model.name=timm:nix": "timm has no model 'nix'",
    "data.batch_size=79": "an epoch's smallest batch has 1 of 80 images",
    "optimizer.name=blub": "unknown optimizer 'blub'",
    "average.buffers=[nix]": "average: ",
    "replicas=[[nix],[crop],[crop]]": "unknown augmentation 'nix'",
    "replicas=[[{hflip: {p: 2}}]]": "augmentation hflip with {'p': 2}: p is 2: should be less than or equal to 1",
    "compile=true": "compile on a CPU corrupts memory in stages.1.0.shortcut.0",
}


@pytest.mark.parametrize(("value", "message"), REFUSED.items())
def test_mistakes_are_found(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_preflight(load_config(None, [f"out={tmp_path}/run", *TINY, value]), 3, alone=True)
    assert not (tmp_path / "run").exists()


def test_shards_that_get_too_few_images(tmp_path: Path) -> None:
    config = load_config(None, [f"out={tmp_path}/run", *TINY])
    run_preflight(config, 24, alone=True)
    with pytest.raises(UserError, match="fewer than 2 for each of a replica's 9 ranks"):
        run_preflight(config, 27, alone=True)


def test_a_run_folder_of_another_config(tmp_path: Path) -> None:
    train(tmp_path / "run", *TINY)
    run_preflight(load_config(None, [f"out={tmp_path}/run", *TINY]), 3, alone=True)
    with pytest.raises(UserError, match=r"was made with another config \(optimizer.lr: 0.1 -> 0.2\)"):
        run_preflight(load_config(None, [f"out={tmp_path}/run", *TINY, "optimizer.lr=0.2"]), 3, alone=True)


def test_a_config_that_no_run_wrote_is_not_overwritten(tmp_path: Path) -> None:
    """Nobody's: found before the ranks start, and by them; a run's own, with or without a checkpoint, is."""
    own = tmp_path / "config.yaml"
    own.write_text("# how I train\nepochs: 1\n")
    said = rf"{own} is no run's, and a training would overwrite it: rename it, or give another `out`"
    with pytest.raises(UserError, match=said):
        run_preflight(load_config(own, [f"out={tmp_path}", *TINY]), 3, alone=True)
    assert sorted(tmp_path.iterdir()) == [own]
    job = Job("train", str(own), f"out={tmp_path}", *TINY)
    assert job.wait() == [2]
    assert job.said() == f"error: {said}\n"
    assert own.read_text() == "# how I train\nepochs: 1\n"
    (tmp_path / "metrics.jsonl").write_text("")
    run_preflight(load_config(own, [f"out={tmp_path}", *TINY]), 3, alone=True)


@pytest.mark.parametrize(("nodes", "code"), [(1, 2), (3, 0)])
def test_a_run_folder_in_use(tmp_path: Path, nodes: int, code: int) -> None:
    """Of several nodes each may look at the same time: the ranks will find it."""
    with locked(tmp_path):
        job = Job("processes", f"out={tmp_path}", *TINY, "--nodes", str(nodes))
        assert job.wait() == [code]
    assert (f"error: {tmp_path} is in use by process" in job.said()) == (nodes == 1)


def test_the_launcher_starts_no_rank_for_a_mistake(venv: Path, tmp_path: Path) -> None:
    command = ["env", f"VENV={venv}", "bash", "launch/torchrun.sh", f"out={tmp_path}/run", *TINY, "model.name=timm:nix"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_TIMEOUT)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: timm has no model 'nix': known are ")
