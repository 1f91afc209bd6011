"""`bench` measures what it says, and its figures follow from what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lookaround_ddp.bench.figures import spread_cells
from lookaround_ddp.bench.rounds import added
from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import Job

COMPETITORS = [
    "Lookaround",
    "Lookaround(measure=True)",
    "Lookaround(exact=False)",
    "PeriodicModelAverager",
    "bare all_reduce",
]
RUNS = ["trainer, d = 1", "bare loop", "timm's loader", "batched loop"]
RUNS += ["original, d = 2", "trainer, d = 2, 1 rank", "trainer, d = 2, 2 ranks"]


def figures(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What `bench` writes and what it prints."""
    command = [sys.executable, "-m", "lookaround_ddp", "bench", *arguments, f"--json={folder}/figures.json"]
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TEST_TIMEOUT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "figures.json").read_text()), done.stdout


def test_the_average_step(tmp_path: Path) -> None:
    found, said = figures(tmp_path, "average", "--model=resnet18", "--ranks=2", "--repeats=2")
    average = found["average"]
    assert list(found) == ["average"]
    # With 1,000 classes instead of 100 the head has 513 * 900 parameters more than 11.22 M.
    assert average["parameters"] == 11_168_832 + 513 * 1000
    assert average["parameter_bytes"] == 4 * average["parameters"]
    assert list(average["rows"]) == COMPETITORS
    reference = average["rows"]["PeriodicModelAverager"]
    assert reference["extra_bytes"] == pytest.approx(average["parameter_bytes"], rel=0.15)  # its flat copy
    for name, row in average["rows"].items():
        assert 0 < row["milliseconds"]["min"] <= row["milliseconds"]["median"] <= row["milliseconds"]["max"]
        assert row["time_ratio"] == row["milliseconds"]["median"] / reference["milliseconds"]["median"]
        (shown,) = (line for line in said.splitlines() if line.strip().startswith(f"{name}  "))
        cells = shown.strip().removeprefix(name).split()
        spread = [row["milliseconds"][key] for key in ("min", "median", "max")]
        assert [float(cell) for cell in cells[:3]] == pytest.approx(spread, rel=1e-3, abs=0.01)
    assert f"torch {torch.__version__}\n" in said


def test_the_cost_elsewhere(tmp_path: Path) -> None:
    """ResNet-8's parameters on 2 ranks; a step of 10 ms."""
    found, said = figures(
        tmp_path, "average", "--model=resnet8", "--ranks=2", "--repeats=2", "--step-ms=10", "--epoch-steps=7"
    )
    cost = found["average"]["cost"]
    assert cost["bytes"] == [1e6, 4e6, 16e6, 64e6]
    assert list(cost["average"]) == ["2", "8", "32", "128", "1024"]
    size = found["average"]["parameter_bytes"]
    expected = cost["latency"] * 7 + size / cost["bandwidth"] * (7 / 8) / (1 / 2)
    assert cost["average"]["8"] == pytest.approx(expected)
    (row,) = (line.split() for line in said.splitlines() if line.split()[:1] == ["8"])
    shares = [100 * expected / (expected + 0.01 * k) for k in (1, 5, 10, 50, 7)]
    assert row == ["8", f"{1000 * expected:.1f}", *(part for share in shares for part in (f"{share:.1f}", "%"))]


def test_rounds(tmp_path: Path) -> None:
    found, said = figures(tmp_path, "round", "--round-model=resnet8", "--ranks=2", "--repeats=2", "--k=3")
    rows = found["round"]["rows"]
    assert list(rows) == ["never averaged", "waited for", "delay 1", "delay 2"]
    medians = {name: row["milliseconds"]["median"] for name, row in rows.items()}
    waited = medians["waited for"] - medians["never averaged"]
    for name in ("waited for", "delay 1", "delay 2"):
        cost = medians[name] - medians["never averaged"]
        assert rows[name]["average"] == pytest.approx(cost)
        assert rows[name]["overlapped"] == pytest.approx(1 - cost / waited)
    assert "Rounds of 3 steps of resnet8, 16 images of 32 px a step; n = 2" in said


def test_rounds_of_steps_that_wait(tmp_path: Path) -> None:
    """Two steps of 30 ms, whatever else: 60 ms a round, and more with an average that is waited for."""
    found, said = figures(
        tmp_path, "round", "--round-model=resnet8", "--ranks=2", "--repeats=2", "--k=2", "--wait-ms=30"
    )
    rows = found["round"]["rows"]
    assert all(row["milliseconds"]["min"] >= 60 for row in rows.values())
    assert list(rows) == ["never averaged", "waited for", "delay 1"]
    assert "Rounds of 2 steps of resnet8, steps that wait for 30 ms; n = 2" in said


def test_a_column_does_not_grow_beyond_four_digits() -> None:
    cells = spread_cells({"min": 0.1234, "median": 426.361, "max": 1383.7}, 2)
    assert cells == ["0.12", "426.4", "1384"]


def test_a_slow_spell_counts_once() -> None:
    """3, 5 and 80 ms more; the medians differ by 10."""
    assert added([10, 20, 90], [7, 15, 10]) == 5


def test_the_trainer(tmp_path: Path) -> None:
    found, said = figures(
        tmp_path, "train", "--train-model=resnet8", "--batch-size=50", "--iterations=20", "--rounds=1"
    )
    train = found["train"]
    assert train["iterations"] == 20  # one epoch of the 1,000 digits
    assert list(train["rows"]) == RUNS
    speeds = {name: row["images_per_second"] for name, row in train["rows"].items()}
    for name, reference in (("trainer, d = 1", "bare loop"), ("trainer, d = 2, 2 ranks", "trainer, d = 2, 1 rank")):
        expected = speeds[name]["median"] / speeds[reference]["median"]
        assert train["rows"][name]["ratio"]["of_medians"] == pytest.approx(expected)
        assert f"{expected:.2f}" in said
    assert min(speed["min"] for speed in speeds.values()) > 1
    for name in RUNS[4:]:  # 10 iterations of 2 replicas on 50 images
        assert train["rows"][name]["seconds"]["median"] * speeds[name]["median"] == pytest.approx(1000)
    for name in RUNS[5:]:
        expected = speeds[name]["median"] / speeds["original, d = 2"]["median"]
        assert train["rows"][name]["times_as_fast"]["of_medians"] == pytest.approx(expected)
    if not torch.cuda.is_available():
        peak = train["peak"]["flops_per_second"]["median"]
        for name, cores in zip(RUNS, (1, 1, 1, 1, 1, 1, 2), strict=True):
            share = train["flops_per_image"] * speeds[name]["median"] / (cores * peak)
            assert train["rows"][name]["mfu"] == pytest.approx(share)
            assert f" {100 * share:.1f} % \n" in said


def test_the_augmentations(tmp_path: Path) -> None:
    found, said = figures(tmp_path, "data", "--workers=2", "--batch-size=32", "--rounds=1", "--consumer=resnet8")
    data = found["data"]
    assert len(data["rows"]) == 5
    for name, rows in data["rows"].items():
        assert f"\n {name}  " in said
        assert [*rows][:3] == ["workers: none, 1 core", "workers: 2 processes", "device: CPU, 1 core"]
        one_core, _, device, *_ = (row["images_per_second"]["median"] for row in rows.values())
        assert rows["device: CPU, 1 core"]["ratio"]["of_medians"] == pytest.approx(device / one_core)
    rows = data["jpeg"]["rows"]
    *ways, training = rows
    assert ways[:3] == ["PIL, 1 core", "PIL, workers: 2 processes", "torchvision, 1 core"]
    assert training == "training: resnet8"
    for way in ways:
        speed, consumed = (rows[name]["images_per_second"]["median"] for name in (way, training))
        assert rows[way]["ratio"]["of_medians"] == pytest.approx(speed / consumed)
        assert f"\n {way}  " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["average", "--ranks=0"], "error: --ranks is 0: give 1 or more"),
        (["average", "--model=resnet19"], "error: unknown model 'resnet19': did you mean resnet"),
        (["data", "--batch-size=0"], "error: --batch-size is 0: give 1 or more"),
        (["data", "--consumer=resnet19"], "error: unknown model 'resnet19': did you mean resnet"),
        (["round", "--k=0"], "error: --k is 0: give 1 or more"),
        (["round", "--round-model=resnet19"], "error: unknown model 'resnet19': did you mean resnet"),
        (["round", "--wait-ms=0"], "error: --wait-ms is 0: give the milliseconds of a step, more than 0"),
        (["train", "--rounds=0"], "error: --rounds is 0: give 1 or more"),
        (["train", "--iterations=10"], "error: --iterations is 10: give 11 or more"),
        (["train", "--data=mnist"], "error: data.name is 'mnist'"),
        (["average", "--json=/proc/none/x.json"], "error: "),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    job = Job("bench", *arguments)
    assert job.wait() == [2]
    (line,) = job.said().splitlines()
    assert line.startswith(message)
