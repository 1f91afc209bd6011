"""The table of classes and its files, of a confusion matrix that is written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from lookaround_ddp.cli import main
from lookaround_ddp.evaluation.evaluator import _confusion
from lookaround_ddp.evaluation.per_class import PerClass, show_classes, write_classes

LOGITS = [[2.0, 1, 0], [0, 1, 2], [0, 3, 0], [9, 8, 7], [5, 6, 1], [1, 2, 3]]  # guesses 0, 2, 1, 0, 1, 2
LABELS = [0, 0, 1, 1, 1, 0]
COUNTS = [[1, 0, 2], [1, 2, 0], [0, 0, 0]]
FOUND = PerClass("mean model", ("boot", "a, b", "rare"), torch.tensor(COUNTS))


def test_counts_of_logits() -> None:
    assert _confusion(torch.tensor(LOGITS), torch.tensor(LABELS)).tolist() == COUNTS


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_classes(FOUND)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip(" \u2500")]
    assert lines == [
        "mean model, test images",
        "class images top-1 % most often taken for",
        "boot 3 33.33 rare (2)",
        "a, b 3 66.67 boot (1)",
        "rare 0 -",
        "all 6 50.00",
        "images of the row's class that are taken for the column's",
        "boot a, b rare",
        "boot 1 0 2",
        "a, b 1 2 0",
        "rare 0 0 0",
    ]


def test_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("c.json", "c.csv"):
        write_classes(FOUND, tmp_path / name)
    assert json.loads((tmp_path / "c.json").read_text()) == {
        "model": "mean model",
        "classes": ["boot", "a, b", "rare"],
        "images": [3, 3, 0],
        "right": [1, 2, 0],
        "top1": [pytest.approx(100 / 3), pytest.approx(200 / 3), None],
        "confusion": COUNTS,
    }
    with (tmp_path / "c.csv").open() as file:
        head, *rows = csv.reader(file)
    assert head == ["class", "images", "right", "top1", "taken for boot", "taken for a, b", "taken for rare"]
    assert [[row[0], *row[4:]] for row in rows] == [["boot", *"102"], ["a, b", *"120"], ["rare", *"000"]]
    assert rows[2][3] == ""
    (tmp_path / "config.yaml").write_text("epochs: 1\n")
    for arguments in (("--out", "c.csv"), ("--per-class", "--out", "c.txt")):
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", str(tmp_path), *arguments])
        assert ended.value.code == 2
        assert "it takes a .json or .csv, and goes with --per-class" in capsys.readouterr().err
