"""Trainings on folders with files that are no images: the same numbers on any number of ranks, and after a resume."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lookaround_ddp.checkpoint import run_config
from lookaround_ddp.data import open_dataset
from lookaround_ddp.data.reading import UnreadableImage
from lookaround_ddp.training.state import check_resumable
from tests.support.pictures import emptied, picture_folder, truncated
from tests.support.runs import TINY, Job, die_at, resumes, train, weights

# 24 images to train on, 3 iterations an epoch, 12 to test on in batches of 4
FOLDER = (*TINY, "data.name=imagefolder", "data.size=16", "data.train_images=null", "data.batch_size=8")
CONFIG = (*FOLDER, "evaluate.every=1", "evaluate.batch_size=4", "record.every=2", "average.k=2")
SKIP = "data.on_corrupt=skip"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with five damaged files to train on, and one in which they are copies of the next ones."""
    root = tmp_path_factory.mktemp("pictures")
    damaged, copied = (picture_folder(root / name) for name in ("damaged", "copied"))
    for place, stand_in in (("class0/03", "04"), ("class0/06", "08"), ("class0/07", "08"), ("class1/00", "01")):
        truncated(damaged / "train" / f"{place}.png")
        shutil.copy(copied / "train" / f"{place[:-2]}{stand_in}.png", copied / "train" / f"{place}.png")
    emptied(damaged / "train/class1/10.png")
    shutil.copy(copied / "train/class1/11.png", copied / "train/class1/10.png")
    return damaged, copied


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> dict[str, tuple[Path, str]]:
    """Runs, and what they said: of the damaged folder on 1 and 3 ranks, with and without workers; of the copies."""
    folder, (damaged, copied) = tmp_path_factory.mktemp("runs"), folders
    skip = (f"data.root={damaged}", SKIP)
    jobs: dict[str, tuple[int, tuple[str, ...]]] = {
        "1": (1, skip),
        "3": (3, skip),
        "1 with workers": (1, (*skip, "data.workers=2")),
        "3 with workers": (3, (*skip, "data.workers=1")),
        "copied": (1, (f"data.root={copied}",)),
    }
    return {name: (folder / name, train(folder / name, *CONFIG, *own, ranks=n)) for name, (n, own) in jobs.items()}


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("name", ["1", "3", "1 with workers", "3 with workers"])
def test_training_is_as_if_the_next_files_were_there_twice(runs: dict[str, tuple[Path, str]], name: str) -> None:
    """The same bits on any number of ranks and workers. The next files are of the same classes here."""
    arrays = [torch.load(runs[each][0] / "checkpoints/6/replica-0.pt", weights_only=True) for each in (name, "copied")]
    states = [array["model"] for array in arrays]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    (one, _), (other, _) = runs[name], runs["copied"]
    assert weights(one) == weights(other)
    assert [result(one)[key] for key in ("mean", "best")] == [result(other)[key] for key in ("mean", "best")]
    losses = [
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for run in (one, other)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("name", "most"), [("1", 1), ("3", 3), ("1 with workers", 2), ("3 with workers", 3)])
def test_each_process_names_one_file(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path], name: str, most: int
) -> None:
    """A rank, or each of its workers where it has some."""
    warned = [line for line in runs[name][1].splitlines() if "the next image stands for it" in line]
    assert 1 <= len(warned) <= most
    files = {str(path) for path in (folders[0] / "train").rglob("*.png")}
    assert {line.split("warning: ")[1].split(" cannot be read (")[0] for line in warned} <= files


def test_a_resumed_run_ends_with_the_same_numbers(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out, command = tmp_path / "run", (*CONFIG, f"data.root={folders[0]}", SKIP, "checkpoint.every=0.5")
    after, _ = resumes(out, *command, ranks=3, killed_at=5, only=0, on=1)
    assert after == 4
    assert weights(out) == weights(runs["1"][0])
    assert result(out)["mean"] == result(runs["1"][0])["mean"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_scored_must_be_whole(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path], tmp_path: Path, ranks: int
) -> None:
    """A score over fewer images is another number."""
    root = tmp_path / "pictures"
    shutil.copytree(folders[0], root)
    emptied(root / "val/class0/00.png")
    line = f"error: {UnreadableImage(f'{root}/val/class0/00.png', 'not an image')}"
    run = shutil.copytree(runs["1"][0], tmp_path / "run")
    arguments = [f"data.root={root}", SKIP]
    for command in (["train", f"out={tmp_path}/new", *CONFIG], ["evaluate", str(run)], ["ensemble", str(run)]):
        job = Job(*command, *arguments, ranks=ranks)
        codes = job.wait()
        assert codes[0] == 2
        assert 0 not in codes
        assert line in job.said().splitlines()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("split", ["train", "val"])
def test_by_default_the_file_is_named_in_one_line(tmp_path: Path, split: str, ranks: int, workers: int) -> None:
    root = picture_folder(tmp_path / "pictures")
    truncated(root / split / "class1/04.png")
    arguments = [*CONFIG, f"data.root={root}", f"data.workers={workers}"]
    job = Job("train", f"out={tmp_path}/run", *arguments, ranks=ranks)
    codes = job.wait()
    assert 2 in codes
    assert 0 not in codes
    line = f"error: {UnreadableImage(f'{root}/{split}/class1/04.png', 'image file is truncated')}"
    assert line in [each.removeprefix("rank 1: ").removeprefix("rank 2: ") for each in job.said().splitlines()]
    if ranks == 1:
        assert "Traceback" not in job.said()


def test_error_can_become_skip_in_mid_run_and_skip_error(tmp_path: Path) -> None:
    """The mend that the error names is taken up; whoever has mended the files goes on without it."""
    root, out = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    lost = root / "train/class0/05.png"
    content = lost.read_bytes()
    command = (*CONFIG, f"data.root={root}", "checkpoint.every=0.4")
    emptied(lost)
    assert "05.png cannot be read" in train(out, *command, expect=2)
    job = Job("train", f"out={out}", *command, SKIP, prepare=partial(die_at, 5, 0))
    assert job.wait() == [-signal.SIGKILL]
    lost.write_bytes(content)
    assert "resumed after iteration 5" in train(out, *command)


@pytest.mark.parametrize("value", ["error", "skip"])
def test_an_older_checkpoint_is_gone_on_with(runs: dict[str, tuple[Path, str]], value: str) -> None:
    """Its config says what data.on_corrupt was, and its state which images were passed over."""
    state = json.loads((runs["1"][0] / "checkpoints/6/run.json").read_text())
    config = run_config(runs["1"][0])
    older = {**state["config"], "data": {**state["config"]["data"], "on_corrupt": value}}
    dataset = open_dataset(config.data, config.seed)
    check_resumable(config, dataset, {**state, "config": older, "unreadable": {"train": [3], "test": []}})


def lose(path: Path, iteration: int, rank: int) -> None:
    """Makes a file vanish when a rank begins this iteration."""
    from lookaround_ddp.training.replica import Replica

    step = Replica.step

    def losing(self: Replica, batches: object, number: int, rate: float) -> object:
        if number == iteration:
            path.unlink(missing_ok=True)
        return step(self, batches, number, rate)

    Replica.step = losing


def test_a_file_that_vanishes_in_mid_run(tmp_path: Path) -> None:
    """It is passed over; but a run is not resumed with other files than it began with, whose numbers would differ."""
    root, out = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    lost = root / "train/class0/05.png"
    content = lost.read_bytes()
    command = (f"out={out}", *CONFIG, f"data.root={root}", SKIP, "checkpoint.every=0.5")
    job = Job("train", *command, ranks=3, prepare=partial(lose, lost, 2))
    assert job.wait() == [0] * 3, job.said()
    assert f"warning: {lost} cannot be read (No such file or directory): the next image stands for it" in job.said()
    (out / "result.json").unlink()
    said = train(out, *command[1:], expect=2)
    assert "was trained on 24 images with labels" in said
    assert "the data has 23 images" in said
    lost.write_bytes(content)
    assert "resumed after iteration 6" in train(out, *command[1:])


def test_a_folder_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "pictures")
    for path in (root / "train").rglob("*.png"):
        emptied(path)
    said = train(tmp_path / "run", *CONFIG, f"data.root={root}", SKIP, "data.workers=1", expect=2)
    assert "none of 24 images can be read, such as" in said
