"""Folders that cannot be written, full disks, damaged or malicious files: one line, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import TINY, Job, die_at, train, weights

NOBODY = 65534
CONFIG = (*TINY, "checkpoint.every=0.4", "checkpoint.keep=3", "record.every=1")  # a checkpoint each 2 of 10 iterations


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    train(out, *CONFIG)
    return out


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run as it is after a kill between its last checkpoint and its end."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for name in ("result.json", "model.safetensors"):
        (out / name).unlink()
    return out


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


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
    assert one_line(job.said(0)) == f"error: {tmp_path}/run: Permission denied{where}"
    assert not (tmp_path / "run").exists()


def test_out_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = train(tmp_path / "file" / "run", *TINY, expect=2)
    assert one_line(said) == f"error: {tmp_path}/file/run: Not a directory"


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs root, and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_disk(folder: Path, left: int) -> Path:
    """Takes all of a file system but so many KB."""
    path = folder / "other"
    with path.open("wb") as file:
        file.write(bytes(shutil.disk_usage(folder).free - left * 1024))
    return path


def fill_before_saving(folder: Path, left: int, rank: int) -> None:
    """Makes rank 0 fill the disk when it begins to save after iteration 6."""
    from lookaround_ddp.checkpoint import Checkpoints

    save = Checkpoints.save

    def filled(self: Checkpoints, iteration: int, *arguments: Any) -> None:
        if rank == 0 and iteration == 6:
            fill_disk(folder, left)
        save(self, iteration, *arguments)

    Checkpoints.save = filled


def full_record(rank: int) -> None:
    """Makes the record find no room after iteration 5."""
    from lookaround_ddp.training.record import Record

    train = Record.train

    def filled(self: Record, line: Mapping[str, Any]) -> None:
        if rank == 0 and line["iteration"] == 5:
            self.metrics.close()
            self.metrics = Path("/dev/full").open("a")  # noqa: SIM115  # the run closes it
        train(self, line)

    Record.train = filled


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("left", [0, 60, 150, None])  # a checkpoint has 3 files of 67 KB, and run.json
def test_a_disk_that_is_full_in_the_middle(small_disk: Path, finished: Path, ranks: int, left: int | None) -> None:
    """The run ends with a line that names the file; with room again, the same command ends with the same bits."""
    out = small_disk / "run"
    fill = full_record if left is None else partial(fill_before_saving, small_disk, left)
    job = Job("train", f"out={out}", *CONFIG, ranks=ranks, prepare=fill)
    codes, said = job.wait(), job.said()
    line = one_line(re.sub("(?m)^rank . : error:.*\n", "", said))
    if left is None:
        assert line == f"error: {out}/metrics.jsonl: No space left on device"
        assert codes == [2, 1, 1][:ranks]
    else:
        assert re.match(rf"error: {out}/checkpoints/.writing-6/replica-.\.pt: No space left on device", line)
        assert codes == [2] * ranks
    assert not list(out.rglob(".writing-*"))
    (small_disk / "other").unlink(missing_ok=True)
    assert "resumed after iteration 4" in train(out, *CONFIG, ranks=ranks)
    assert weights(out) == weights(finished)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, 11))


def test_a_disk_that_is_full_at_the_start(small_disk: Path) -> None:
    fill_disk(small_disk, 0)
    said = train(small_disk / "run", *CONFIG, expect=2)
    assert "No space left on device" in one_line(said)
    (small_disk / "other").unlink()
    train(small_disk / "run", *CONFIG)


def test_a_disk_that_is_full_when_the_model_is_written(stopped: Path, small_disk: Path, finished: Path) -> None:
    out = small_disk / "run"
    shutil.copytree(stopped, out)
    fill_disk(small_disk, 8)
    said = train(out, *CONFIG, expect=2)
    assert one_line(said) == f"error: {out}/.writing-model.safetensors: No space left on device"
    assert not list(out.rglob(".writing-*"))
    assert not (out / "result.json").exists()
    (small_disk / "other").unlink()
    train(out, *CONFIG)
    assert weights(out) == weights(finished)


# Files that are not what they should be


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
    assert job.wait() == [0], job.said()
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
