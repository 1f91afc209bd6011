"""Folders that cannot be written, full disks, damaged or malicious files: one line, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import TINY, Job, die_at, train, weights
from tests.support.small_runs import CONFIG, one_line

NOBODY = 65534


# Folders that refuse


def become_nobody(rank: int) -> None:
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@pytest.mark.parametrize("ranks", [1, 3])
def test_out_in_a_folder_without_permission(tmp_path: Path, ranks: int) -> None:
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    tmp_path.chmod(0o555)
    job = Job("train", f"out={tmp_path}/run", *TINY, ranks=ranks, prepare=become_nobody)
    assert job.wait() == [2] * ranks, job.said()
    where = " (rank 0)" if ranks > 1 else ""
    named = [f"error: {tmp_path}/{name}: Permission denied{where}" for name in ("run", "run/config.yaml")]
    assert one_line(job.said(0)) in named  # the latter where even looking into the folder is not allowed
    assert not (tmp_path / "run").exists()


def test_out_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = train(tmp_path / "file" / "run", *TINY, expect=2)
    assert one_line(said) == f"error: {tmp_path}/file/run: Not a directory"


# Full disks


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def rewrite(checkpoint: Path, name: str, content: Any) -> None:
    """Another content for a file of a checkpoint, with the checksums that a forger would put there."""
    torch.save(content, checkpoint / name)
    state = json.loads((checkpoint / "run.json").read_text())
    state["files"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    del state["digest"]
    state["digest"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (checkpoint / "run.json").write_text(json.dumps(state))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_checkpoint_with_a_pickle_payload(stopped: Path, tmp_path: Path, ranks: int) -> None:
    rewrite(stopped / "checkpoints" / "10", "replica-1.pt", {"model": Payload(tmp_path / "mark")})
    said = one_line(train(stopped, *CONFIG, ranks=ranks, expect=2).replace("rank 1: error", "rank 1: "))
    assert f"{stopped}/checkpoints/10/replica-1.pt is refused, and nothing in it was run" in said
    assert not (tmp_path / "mark").exists()
    (finished_result := stopped / "result.json").write_text("{}")
    job = Job("evaluate", str(stopped), "evaluate.replicas=true")
    assert job.wait() == [2], job.said()
    assert not (tmp_path / "mark").exists()
    finished_result.unlink()


def test_a_checkpoint_of_something_else(stopped: Path) -> None:
    rewrite(stopped / "checkpoints" / "10", "replica-1.pt", {"weights": torch.zeros(3)})
    said = one_line(train(stopped, *CONFIG, expect=2))
    assert "replica-1.pt does not fit this run (KeyError: 'model')" in said


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pretrained_weights_with_a_pickle_payload(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": Payload(tmp_path / "mark")}, path)
    said = train(tmp_path / "run", *TINY, f"model.pretrained={path}", expect=2)
    assert f"error: {path} is not a readable state dict" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", b"{", "result.json is damaged"),
        ("result.json", b"[1]", "result.json is damaged (it is no result)"),
        ("result.json", b"\xff\xfe", "result.json is damaged"),
    ],
)
def test_a_damaged_result_can_be_written_anew(
    finished: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    expected = json.loads((out / name).read_text())
    (out / name).write_bytes(content)
    assert message in one_line(train(out, *CONFIG, expect=2))
    job = Job("report", str(out))
    assert job.wait() == [2], job.said()
    assert "is damaged" in one_line(job.said())
    (out / name).unlink()
    train(out, *CONFIG)
    assert json.loads((out / name).read_text())["mean"] == expected["mean"]
    assert weights(out) == weights(finished)


@pytest.mark.parametrize("content", [b"", b"PK nonsense", bytes(100)], ids=["empty", "other", "zeros"])
def test_a_damaged_model(finished: Path, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "model.safetensors").write_bytes(content)
    for command in (("evaluate", str(out)), ("ensemble", str(out)), ("soup", str(out), "--recipe=uniform")):
        job = Job(*command)
        assert job.wait() == [2], job.said()
        assert "model.safetensors is not a model of this package" in one_line(job.said())


def test_damaged_lines_of_the_record_are_left_out(stopped: Path, finished: Path) -> None:
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"\xff\xfe\n", lines[0], b'{"iteration"\n', *lines[1:], b'{"iter']))
    assert "metrics.jsonl: 2 of its lines are damaged, and left out from now on" in train(stopped, *CONFIG)
    kept = path.read_bytes().splitlines(keepends=True)
    assert kept[: len(lines)] == lines


def test_a_damaged_checkpoint_is_not_kept_in_place_of_the_one_that_was_just_written(stopped: Path) -> None:
    """Checkpoints 6, 8 and 10, of which 10 is damaged; one is kept. The run goes on from 8 and is told to leave."""
    (stopped / "checkpoints" / "10" / "replica-1.pt").write_bytes(b"")
    once = (*CONFIG, "checkpoint.keep=1", "checkpoint.grace_seconds=0.001")
    job = Job("train", f"out={stopped}", *once, prepare=partial(die_at, 8, 0, death=signal.SIGTERM))
    assert job.wait() == [143], job.said()
    assert "SIGTERM: saved after iteration 9" in job.said()
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["9"]
    assert "resumed after iteration 9" in train(stopped, *once)


def test_run_json_that_holds_something_else(stopped: Path) -> None:
    (stopped / "checkpoints" / "10" / "run.json").write_text("[1]")
    said = train(stopped, *CONFIG)
    assert "checkpoint 10 is damaged (run.json: " in said
    assert "resumed after iteration 8" in said


# Secrets


def test_no_key_is_written_anywhere(tmp_path: Path) -> None:
    """40 characters are what Weights & Biases takes for a key."""
    key = "0123456789abcdef0123456789abcdef01234567"
    job = Job("train", f"out={tmp_path}/run", *TINY, "record.wandb=offline", prepare=partial(set_key, key))
    assert job.wait() == [0], job.said()
    assert key not in job.said()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if key.encode() in path.read_bytes()]


def set_key(key: str, rank: int) -> None:
    os.environ["WANDB_API_KEY"] = key
