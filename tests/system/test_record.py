"""What a run shows and keeps: its lines and their numbers, the live display, and Weights & Biases that never harms."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import TINY, Job, train, weights

# 10 iterations in 2 epochs, averages after 3, 6 and 9; lines after 4, 8 and 10, scores after 5 and 10
CONFIG = (*TINY, "record.every=4", "evaluate.every=1", "evaluate.replicas=true")


def lines_of(out: Path) -> list[dict[str, Any]]:
    """All lines but the last of a finished run, which has its final scores."""
    *lines, last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((out / "result.json").read_text())
    scores = {name: result[name] for name in ("mean", "replicas", "best")}
    assert last == {"iteration": 10, "epoch": 2, "final": scores}
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    """The same run on 1 and on 3 processes, and what it said."""
    folder = tmp_path_factory.mktemp("runs")
    return {ranks: (folder / str(ranks), train(folder / str(ranks), *CONFIG, ranks=ranks)) for ranks in (1, 3)}


@pytest.mark.parametrize("ranks", [1, 3])
def test_metrics_hold_every_line(runs: dict[int, tuple[Path, str]], ranks: int) -> None:
    lines = lines_of(runs[ranks][0])
    assert [(line["iteration"], "loss" in line) for line in lines] == [
        (4, True),
        (5, False),
        (8, True),
        (10, True),
        (10, False),
    ]
    for line in lines:
        assert line["epoch"] == line["iteration"] / 5
        if "loss" in line:
            assert line["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * (line["iteration"] - 1) / 10)))
            assert len(line["loss"]) == len(line["distance"]) == 3
            assert 0.5 < min(line["loss"]) <= max(line["loss"]) < 5  # about log(10) at the start
            assert min(line["distance"]) > 0
        else:
            assert set(line) == {"iteration", "epoch", "mean", "replicas"}
            assert [set(score) for score in (line["mean"], *line["replicas"])] == [{"top1", "top5", "nll"}] * 4


def test_speed_and_remaining_time_follow_from_the_seconds(runs: dict[int, tuple[Path, str]]) -> None:
    """An iteration has 16 images for each of three replicas; 10 iterations are the run.

    What is left is that, and evaluations after 5 and 10 and checkpoints with them as long as what there was of them.
    """
    lines = [line for line in lines_of(runs[1][0]) if "loss" in line]
    for before, line in zip([{"iteration": 0, "seconds": None}, *lines], lines, strict=False):
        if before["seconds"] is None:
            continue
        iterations = line["iteration"] - before["iteration"]
        elapsed = line["seconds"] - before["seconds"]
        assert line["images_per_second"] == pytest.approx(48 * iterations / elapsed)
        pauses = line["total_seconds"] - line["seconds"]  # the evaluation and the checkpoint after iteration 5
        assert pauses > lines[0]["total_seconds"] - lines[0]["seconds"]
        assert line["eta"] == pytest.approx((10 - line["iteration"]) * elapsed / iterations + pauses, rel=0.2)
    result = json.loads((runs[1][0] / "result.json").read_text())
    assert result["total_seconds"] > result["seconds"] >= lines[-1]["seconds"]


def test_losses_distances_and_scores_do_not_depend_on_the_number_of_processes(
    runs: dict[int, tuple[Path, str]],
) -> None:
    shown = ("iteration", "epoch", "lr", "loss", "distance", "mean", "replicas")
    one, three = ([{k: line[k] for k in shown if k in line} for line in lines_of(out)] for out, _ in runs.values())
    assert one == three


def test_a_log_file_gets_plain_lines_with_the_same_figures(runs: dict[int, tuple[Path, str]]) -> None:
    for out, said in runs.values():
        assert "\x1b" not in said
        for line in lines_of(out):
            if "loss" in line:
                losses, distances = (" ".join(f"{x:.3f}" for x in line[key]) for key in ("loss", "distance"))
                text = f"iteration {line['iteration']}/10 | epoch {line['epoch']:.2f} | lr {line['lr']:.4g} | "
                text += f"loss {losses} | distance {distances} | {line['images_per_second']:.0f} images/s | ETA 0:"
            else:
                replicas = " ".join(f"{score['top1']:.2f}" for score in line["replicas"])
                text = f"epoch {line['epoch']:.4g} | mean top-1 {line['mean']['top1']:.2f} top-5 "
                text += f"{line['mean']['top5']:.2f} NLL {line['mean']['nll']:.4f} | replicas {replicas}"
            assert said.count(text) == 1, text


def test_a_terminal_gets_a_live_display(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "lookaround_ddp", "train", f"out={tmp_path}/run", *CONFIG]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, stderr=terminal, stdout=subprocess.DEVNULL, env=environment)
    os.close(terminal)
    said, deadline = b"", time.monotonic() + TEST_TIMEOUT
    try:
        while time.monotonic() < deadline and select.select([main], [], [], 120)[0]:
            try:
                said += os.read(main, 65536)
            except OSError:  # how a pseudo-terminal says that its other end is closed
                break
        assert process.wait(TEST_TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
    text = said.decode()
    assert "\x1b[?25l" in text  # hides the cursor while the display lives
    assert "\x1b[?25h" in text
    assert re.search(r"loss \d\.\d{3} \d\.\d{3} \d\.\d{3} \| \d+ images/s", text)
    assert re.search(r"epoch \d\.\d0 \| lr 0\.\d+ \| loss ", text)
    assert re.search(r"10/10\x1b\[0m \d:\d\d in all", text)
    assert "10/10" in text
    assert "iteration 4/10" not in text  # a line of a log file


def fail(where: str, rank: int) -> None:
    """Makes Weights & Biases fail, in the way named."""
    if where == "import":
        sys.modules["wandb"] = None  # importing it raises ImportError
        return
    import wandb

    def broken(*_: object, **__: object) -> Any:
        raise ConnectionError("the network is down")

    class Broken:
        finish = log = broken

    if where == "init":
        wandb.init = broken
    elif where == "log":
        wandb.init = lambda **_: Broken()


@pytest.mark.parametrize(
    ("mode", "prepare", "message"),
    [
        ("offline", partial(fail, "init"), "wandb: the network is down: this run is recorded in {out} alone"),
        ("offline", partial(fail, "log"), "wandb: the network is down: recording goes on in {out} alone"),
        ("offline", partial(fail, "import"), "this run is recorded in {out} alone"),
        ("online", None, "wandb: no API key; `wandb login` stores one: offline from now on; `wandb sync {out}/wandb/"),
    ],
    ids=["init", "log", "import", "no key"],
)
def test_no_failure_of_wandb_ends_a_training(
    runs: dict[int, tuple[Path, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    prepare: Callable[[int], None] | None,
    message: str,
) -> None:
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, f"record.wandb={mode}", prepare=partial(without_key, prepare))
    assert job.wait() == [0], job.said()
    assert job.said().count(message.format(out=out)) == 1
    assert weights(out) == weights(runs[1][0])
    assert len(lines_of(out)) == 5


def without_key(prepare: Callable[[int], None] | None, rank: int) -> None:
    os.environ.pop("WANDB_API_KEY", None)
    os.environ["NETRC"] = os.devnull
    sys.stdin = open(os.devnull)  # noqa: SIM115 - it is closed with the process
    if prepare is not None:
        prepare(rank)


def test_offline_wandb_is_one_run_of_rank_0(runs: dict[int, tuple[Path, str]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = train(out, *CONFIG, "record.wandb=offline", ranks=3)
    assert "alone" not in said
    assert weights(out) == weights(runs[3][0])
    (folder,) = (out / "wandb").glob("offline-run-*")
    (log,) = folder.glob("run-*.wandb")
    stored = log.read_bytes()
    for name in (b"images_per_second", b"distance/2", b"mean/nll", b"replicas/1/top1", b"final/best/mean/nll"):
        assert name in stored
