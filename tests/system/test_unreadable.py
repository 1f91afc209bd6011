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

from lookaround_ddp.data.images import UnreadableImage
from tests.support.pictures import emptied, picture_folder, truncated
from tests.support.runs import TINY, Job, die_at, train, weights

# 24 images to train on, 3 iterations an epoch, 12 to test on in batches of 4
FOLDER = (*TINY, "data.name=imagefolder", "data.size=16", "data.train_images=null", "data.batch_size=8")
CONFIG = (*FOLDER, "evaluate.every=1", "evaluate.batch_size=4", "record.every=2", "average.k=2")
SKIP = "data.on_corrupt=skip"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A damaged folder; one whose damaged files are the next ones' copies; one to test on without damaged files.

    Five images to train on are damaged, and five to test on, the first batch of four among them.
    """
    root = tmp_path_factory.mktemp("pictures")
    damaged, copied, fewer = (picture_folder(root / name) for name in ("damaged", "copied", "fewer"))
    for place, stand_in in (("class0/03", "04"), ("class0/06", "08"), ("class0/07", "08"), ("class1/00", "01")):
        truncated(damaged / "train" / f"{place}.png")
        shutil.copy(copied / "train" / f"{place[:-2]}{stand_in}.png", copied / "train" / f"{place}.png")
    emptied(damaged / "train/class1/10.png")
    shutil.copy(copied / "train/class1/11.png", copied / "train/class1/10.png")
    for place in ("class0/00", "class0/01", "class0/02", "class0/03", "class1/05"):
        emptied(damaged / "val" / f"{place}.png")
        (fewer / "val" / f"{place}.png").unlink()
    return damaged, copied, fewer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path, Path]) -> dict[str, tuple[Path, str]]:
    """Runs, and what they said: of the damaged folder on 1 and 3 ranks and with workers, and of the copies."""
    folder, (damaged, copied, _) = tmp_path_factory.mktemp("runs"), folders
    jobs: dict[str, tuple[int, tuple[str, ...]]] = {
        "1": (1, (f"data.root={damaged}", SKIP)),
        "3": (3, (f"data.root={damaged}", SKIP)),
        "workers": (1, (f"data.root={damaged}", SKIP, "data.workers=2")),
        "copied": (1, (f"data.root={copied}",)),
    }
    return {name: (folder / name, train(folder / name, *CONFIG, *own, ranks=n)) for name, (n, own) in jobs.items()}


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("name", ["1", "3", "workers"])
def test_training_is_as_if_the_next_files_were_there_twice(runs: dict[str, tuple[Path, str]], name: str) -> None:
    """The substitutes are of the same classes here."""
    arrays = [torch.load(runs[each][0] / "checkpoints/6/replica-0.pt", weights_only=True) for each in (name, "copied")]
    states = [array["model"] for array in arrays]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["3", "workers"])
def test_results_are_the_same_on_any_number_of_ranks_and_workers(runs: dict[str, tuple[Path, str]], name: str) -> None:
    (one, _), (other, _) = runs["1"], runs[name]
    assert weights(other) == weights(one)
    kept = [{key: result(run)[key] for key in ("mean", "best", "unreadable")} for run in (one, other)]
    assert kept[0] == kept[1]
    figures = ("iteration", "loss", "mean", "unreadable")
    lines = [
        [{key: line[key] for key in figures if key in line} for line in map(json.loads, text.splitlines())]
        for text in ((run / "metrics.jsonl").read_text() for run in (one, other))
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", ["1", "3", "workers"])
def test_unreadable_images_are_counted_and_named_once(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path, Path], name: str
) -> None:
    run, said = runs[name]
    assert result(run)["unreadable"] == {"train": 5, "test": 5}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["unreadable"] for line in lines][-1] == {"train": 5, "test": 5}
    assert lines[0]["unreadable"]["test"] == 0  # after 2 of the 3 iterations before the first evaluation
    warned = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert sum(int(line.split()[1]) for line in warned) == 10
    assert all(line.count("unreadable train images, the next ones stand for them: ") for line in warned[:-1])
    assert warned[-1].startswith("warning: 5 unreadable test images, the scores leave them out: ")
    assert f"{folders[0]}/val/class0/00.png (not an image), " in warned[-1]
    assert warned[-1].endswith("/02.png (not an image), and 2 more")
    assert max(said.count(str(path)) for path in folders[0].rglob("*.png")) == 1


def test_evaluate_ensemble_and_soup_leave_out_the_same(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The scores are those of a folder in which the unreadable files are not."""
    run, clean = runs["1"][0], [f"data.root={folders[2]}"]
    for ranks in (1, 3):
        for command in (["evaluate"], ["ensemble"], ["soup", "--recipe=uniform"]):
            arguments = [*command, str(run)]
            job, expected = Job(*arguments, ranks=ranks), Job(*arguments, *clean)
            assert job.wait() == [0] * ranks, job.said()
            assert expected.wait() == [0], expected.said()
            lines = job.said().splitlines()
            warned = [line for line in lines if line.startswith("warning: ")]
            assert len(warned) == 1
            assert warned[0].startswith("warning: 5 unreadable test images, the scores leave them out: ")
            assert [line for line in lines if line not in warned] == expected.said().splitlines()


def test_a_resumed_run_ends_with_the_same_numbers(
    runs: dict[str, tuple[Path, str]], folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Killed in the second epoch, whose remaining iteration meets fewer of them than the run did."""
    out, command = tmp_path / "run", (*CONFIG, f"data.root={folders[0]}", SKIP, "checkpoint.every=0.5")
    job = Job("train", f"out={out}", *command, ranks=3, prepare=partial(die_at, 5, 0))
    assert job.wait()[0] == -signal.SIGKILL
    said = train(out, *command)
    assert "resumed after iteration 4" in said
    assert "unreadable" not in said  # all were named before
    assert weights(out) == weights(runs["1"][0])
    assert {key: result(out)[key] for key in ("mean", "unreadable")} == {
        key: result(runs["1"][0])[key] for key in ("mean", "unreadable")
    }


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


def test_error_can_become_skip_in_mid_run_and_skip_not_error(tmp_path: Path) -> None:
    """As long as every file could be read, both are the same: the mend that the error names is taken up."""
    root, out = picture_folder(tmp_path / "pictures"), tmp_path / "run"
    truncated(root / "val/class0/00.png")
    command = (*CONFIG, f"data.root={root}", "checkpoint.every=0.4")
    assert "val/class0/00.png cannot be read" in train(out, *command, expect=2)
    assert "resumed after iteration 2" in train(out, *command, SKIP)
    assert result(out)["unreadable"] == {"train": 0, "test": 1}
    assert "data.on_corrupt: skip -> error" in train(out, *command, expect=2)


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
    assert f"warning: 1 unreadable train images, the next ones stand for them: {lost} (No such file" in job.said()
    assert result(out)["unreadable"] == {"train": 1, "test": 0}
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
