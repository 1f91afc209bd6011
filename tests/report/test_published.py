"""The paper's figures in published.csv, against some that were copied from its tables by hand."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from tests.support.configs import PAPER
from tests.support.runs import ROOT

with (ROOT / "lookaround_ddp" / "report" / "published.csv").open(encoding="utf-8") as file:
    ROWS = {f"{row['table']}/{row['config']}": row for row in csv.DictReader(file)}

FIGURES = ("top1", "top5", "nll")
COPIED = {  # a cell, the number of its table, and top-1, top-5 and NLL as they are printed there
    "cifar/cifar10-resnet152-swad": ("1", "95.00", "", "0.20"),
    "cifar/cifar100-resnext50-lookahead": ("1", "80.12", "95.26", ""),
    "imagenet/imagenet-resnet50-swa": ("2", "76.78", "93.18", ""),
    "finetune/cifar10-vit-adam": ("3", "98.34", "", "0.060"),
    "finetune/cifar100-vit-adam-dosovitskiy": ("3", "87.13", "", ""),
    "finetune/cifar100-resnet50-lookaround": ("3", "85.20", "", "0.658"),
    "sam/cifar100-resnet50-32-sam": ("4", "79.10", "", ""),
    "sam/cifar100-vit-lookaround-sam": ("4", "92.54", "", ""),
    "ensembles/cifar100-resnet101-lookaround-logit": ("5", "83.35", "", ""),
    "ablation/cifar10-resnet50-wa-best": ("6", "95.79", "", ""),
    "replicas/cifar100-resnet50-d4": ("7", "81.19", "95.65", ""),
    "sweep/cifar10-resnet50-sgdm": ("8", "", "", ""),
    "cars/cars-resnet18-lookaround-swa-hra": ("9", "91.04", "98.86", ""),
    "dart/cifar100-resnet18-lookaround": ("10", "83.16", "", ""),
    "soups/cifar100-resnet50-soup-uniform10-bn": ("11", "85.57", "98.04", ""),
    "soups/cifar100-resnet50-lookaround": ("11", "85.20", "97.15", ""),
}


@pytest.mark.parametrize("cell", COPIED)
def test_figures_as_the_paper_prints_them(cell: str) -> None:
    assert tuple(ROWS[cell][key] for key in ("number", *FIGURES)) == COPIED[cell]


def test_each_table_is_whole() -> None:
    """Its cells that have figures: of table 1, five methods by five networks by two datasets; table 8 prints none."""
    printed = Counter(row["number"] for row in ROWS.values() if any(row[key] for key in FIGURES))
    assert printed == {
        **{"1": 50, "2": 4, "3": 18, "4": 17, "5": 12, "6": 8, "7": 6},
        **{"9": 12, "10": 4, "11": 7},
    }
    with_top5 = Counter(row["number"] for row in ROWS.values() if row["top5"])
    assert with_top5 == {"1": 25, "2": 4, "7": 6, "9": 12, "11": 7}
    assert Counter(row["number"] for row in ROWS.values() if row["nll"]) == {"1": 25, "3": 16}


@pytest.mark.parametrize("cell", ROWS)
def test_a_cells_first_line_says_what_the_paper_prints(cell: str) -> None:
    row = ROWS[cell]
    first = (PAPER / f"{cell}.yaml").read_text().splitlines()[0]
    names = ("top-1", "top-5", "NLL")
    said = ", ".join(f"{name} {row[key]}" for name, key in zip(names, FIGURES, strict=True) if row[key])
    assert f"Published: {said}." in first if said else "Published" not in first
    assert first.startswith(f"# Paper, table {row['number']}: ") or not row["number"]
