"""Disks that are full: the run ends with a line that names the file, and goes on with the same bits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import Job, train, wait_for_files, weights
from tests.support.small_runs import CONFIG, one_line


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

    wait_for_files()
    begin = Checkpoints.begin

    def filled(self: Checkpoints, iteration: int, *arguments: Any) -> None:
        if rank == 0 and iteration == 6:
            fill_disk(folder, left)
        begin(self, iteration, *arguments)

    Checkpoints.begin = filled


def full_record(rank: int) -> None:
    """Makes the record find no room after iteration 6."""
    from lookaround_ddp.training.record import Record

    wait_for_files()
    train = Record.train

    def filled(self: Record, line: Mapping[str, Any]) -> None:
        if rank == 0 and line["iteration"] == 6:
            self.metrics.close()
            self.metrics = Path("/dev/full").open("a")  # noqa: SIM115  # the run closes it
        train(self, line)

    Record.train = filled


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("left", [0, 60, 150, None])  # a checkpoint has 3 files of 67 KB, and run.json
def test_a_disk_that_is_full_in_the_middle(small_disk: Path, finished: Path, ranks: int, left: int | None) -> None:
    """The run ends with a line that names the file; with room again, the same command ends with the same bits.

    The ranks vote after each iteration. No line of the record comes between the save and the vote that finds that it
    failed.
    """
    out, config = small_disk / "run", (*CONFIG, "record.every=3", "checkpoint.grace_seconds=0.001")
    fill = full_record if left is None else partial(fill_before_saving, small_disk, left)
    job = Job("train", f"out={out}", *config, ranks=ranks, prepare=fill)
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
    assert "resumed after iteration 4" in train(out, *config, ranks=ranks)
    assert weights(out) == weights(finished)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [3, 6, 9, 10]


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
