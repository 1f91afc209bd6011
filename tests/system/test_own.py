"""A network, data and a loss of somebody's own, and minibatches in parts, on several ranks."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.own_code import HERE
from tests.support.runs import Job, resumes, train, weights

OWN = (
    *("data.batch_size=7", "data.accumulate=3", "data.workers=1", "epochs=2", "average.k=2", "checkpoint.every=0.5"),
    *(f"model.name={HERE}.Net", f"data.name={HERE}.pair", f"loss={HERE}.margin", "data.options={train: 42}"),
    *("optimizer.sam={perturbation: synchronized}", "precision=bf16"),
)


def test_the_same_bits_on_one_rank_and_two_and_after_a_kill(tmp_path: Path) -> None:
    values = (*OWN, "replicas=[[rotation],[none]]")
    train(tmp_path / "one", *values)
    train(tmp_path / "two", *values, ranks=2)
    assert weights(tmp_path / "two") == weights(tmp_path / "one")
    iteration, _ = resumes(tmp_path / "killed", *values, killed_at=8)
    assert iteration == 6
    assert weights(tmp_path / "killed") == weights(tmp_path / "one")


def test_ranks_that_share_a_replica(tmp_path: Path) -> None:
    """Of 7 images they have 4 and 3, in two parts and in one: the gradient is the minibatch's, and nobody waits."""
    values = (*OWN, "replicas=[[rotation]]", "precision=fp32")
    train(tmp_path / "one", *values)
    train(tmp_path / "two", *values, ranks=2)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    batch_norm = ("model.name=resnet8", "model.width=4", "optimizer.sam={}", "precision=fp32")
    train(tmp_path / "norm", *OWN, "replicas=[[rotation]]", *batch_norm, ranks=2)


def test_a_loss_that_fails_on_one_rank(tmp_path: Path) -> None:
    """An error as the trainer's own, of replicas that are not finite, is none: all ranks would have raised that."""
    loss = f"loss={{{HERE}.FailsLater: {{calls: 20}}}}"
    job = Job("train", f"out={tmp_path}/run", *OWN, "replicas=[[rotation],[none]]", loss, "timeout=20", ranks=2)
    assert job.wait() == [1, 1], job.said()
    what = "FloatingPointError: no more losses"
    assert re.fullmatch(rf"rank 1: stopped: .*own_code.py, line \d+: {what}", job.said(1).splitlines()[-1]), job.said()
    last = rf"stopped: rank 0 waited in vain, .*: rank 1 failed \({what}\) \(.*\)\. Mend what ended rank 1 first"
    assert re.match(last, job.said(0).splitlines()[-1]), job.said()
    assert "Traceback" not in job.said(0)


def test_ranks_with_other_data(tmp_path: Path) -> None:
    said = train(tmp_path / "run", *OWN, f"data.name={HERE}.apart", "data.options={}", ranks=2, expect=2)
    assert re.search(r"error: rank 1 has 42 images with labels \w+ to train on, and rank 0 40 images", said), said
