"""best.safetensors: the mean model of the best evaluation on held-out images, whatever happens to the run."""

from __future__ import annotations

import hashlib
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lookaround_ddp.config.schema import DataConfig, ModelConfig
from lookaround_ddp.data import open_dataset
from lookaround_ddp.models import create_model
from tests.support.runs import EVERY, TINY, Job, die_at, resumes, train
from tests.support.scores import plain_score

# an evaluation after each of 10 iterations, a checkpoint after every second
CONFIG = (*TINY, "data.validation=30", "evaluate.every=0.2", "checkpoint.every=0.4", "optimizer.lr=0.3")


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def evaluations(run: Path) -> dict[int, dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["iteration"]: line for line in lines if "validation" in line}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("best") / "run"
    train(out, *CONFIG)
    return out


def test_it_is_the_model_of_the_best_evaluation(undisturbed: Path) -> None:
    """The first of the highest; its scores in result.json are those of the file's network, in a plain loop."""
    scores = evaluations(undisturbed)
    best = max(scores, key=lambda iteration: (scores[iteration]["validation"]["top1"], -iteration))
    kept = result(undisturbed)
    assert kept["best"]["iteration"] == best
    assert kept["best"]["mean"] == scores[best]["mean"]
    assert kept["files"]["best.safetensors"] == digest(undisturbed / "best.safetensors") == kept["best"]["sha256"]
    data = open_dataset(DataConfig(train_images=80, validation=30), seed=0)
    model = create_model(ModelConfig(width=4), 10, 1)
    model.load_state_dict(load_file(undisturbed / "best.safetensors"))
    top1, nll = plain_score(model, data.test)
    assert kept["best"]["mean"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert kept["best"]["mean"]["top1"] == pytest.approx(top1, abs=101 / 797)


def test_a_killed_run_ends_with_the_same_one(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    after, _ = resumes(out, *CONFIG, ranks=3, killed_at=7, only=1, on=2)
    assert after == 6
    assert digest(out / "best.safetensors") == digest(undisturbed / "best.safetensors")
    assert result(out)["best"] == result(undisturbed)["best"]


def test_what_was_found_after_the_checkpoint_and_does_not_come_again(undisturbed: Path, tmp_path: Path) -> None:
    """Killed in iteration 8, goes on after 6, and is then evaluated in the end alone: the best is of 6 or 10."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, prepare=partial(die_at, 7, EVERY))
    assert job.wait() == [-signal.SIGKILL], job.said()
    (out / "best.safetensors").unlink()  # the checkpoint has another name for it
    (out / "best.safetensors").write_bytes(b"of iteration 7")
    assert "resumed after iteration 6" in train(out, *CONFIG, "evaluate.every=99")
    scores = {n: line for n, line in evaluations(undisturbed).items() if n <= 6 or n == 10}
    best = max(scores, key=lambda iteration: (scores[iteration]["validation"]["top1"], -iteration))
    kept = result(out)
    assert (kept["best"]["iteration"], kept["best"]["mean"]) == (best, scores[best]["mean"])
    assert kept["best"]["sha256"] == digest(out / "best.safetensors") == kept["files"]["best.safetensors"]
    (out / "best.safetensors").unlink()
    (out / "result.json").unlink()
    train(out, *CONFIG, "evaluate.every=99")
    assert kept["best"]["sha256"] == digest(out / "best.safetensors")


def test_without_held_out_images_there_is_none(tmp_path: Path) -> None:
    train(tmp_path / "run", *TINY)
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert result(tmp_path / "run")["best"]["selected_by"] == "test"
    assert "sha256" not in result(tmp_path / "run")["best"]
