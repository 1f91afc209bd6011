"""The config files: each can be built, and those of the paper say what the paper says."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.schema import DataConfig, ModelConfig
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.models.factory import create_model
from lookaround_ddp.optim.factory import create_optimizer
from lookaround_ddp.report.cells import read_cells
from lookaround_ddp.report.runs import without_seeds
from tests.support.runs import ROOT

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "base"]
PAPER = ROOT / "configs" / "paper"


@cache
def parameters(name: str) -> int:
    """The number of a network's parameter tensors."""
    with torch.device("meta"):
        return sum(1 for _ in create_model(ModelConfig(name=name), 10, 3).parameters())


@cache
def digits() -> Dataset:
    return open_dataset(DataConfig(), seed=0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_config_can_be_built_and_opens_with_its_command(path: Path) -> None:
    config = load_config(path)
    assert parameters(config.model.name) > 20
    assert all(train_pipelines(config.augment, own, digits(), config.label_smoothing) for own in config.replicas)
    create_optimizer(config.optimizer, torch.nn.Linear(2, 2))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"lookaround_ddp train {path.relative_to(ROOT)}" in line for line in head)


def test_there_are_configs() -> None:
    assert len(CONFIGS) > 170


def test_each_cell_of_the_paper_has_a_config_and_each_config_its_cell() -> None:
    """Each trains into a folder of its own."""
    cells = [PAPER / cell.table / f"{cell.config}.yaml" for cell in read_cells()]
    assert sorted(cells) == [path for path in CONFIGS if path.is_relative_to(PAPER)]
    outs = [load_config(path).out for path in cells]
    assert outs == [f"runs/paper/{path.parent.name}/{path.stem}" for path in cells]
    trained = [(path.parent, json.dumps(without_seeds(load_config(path)), sort_keys=True)) for path in cells]
    assert len(set(trained)) == len(cells)  # no two cells of a table are the same run


def cell(name: str) -> dict[str, object]:
    """The values of a cell's config, as `section.key`."""
    values = load_config(PAPER / f"{name}.yaml").model_dump(mode="json")
    return {f"{section}.{key}": v for section, own in values.items() if isinstance(own, dict) for key, v in own.items()}


def test_what_the_paper_says_of_cifar() -> None:
    """Section 5 and appendix: lr 0.1, momentum 0.9, decay 5e-4, batch 128, 200 epochs; cosine or 60/120/160 x 0.2."""
    for data in ("cifar10", "cifar100"):
        for network in ("vgg19", "resnet50", "resnet101", "resnet152", "resnext50"):
            for method in ("sgdm", "swa", "swad", "lookahead", "lookaround"):
                config, own = (
                    load_config(PAPER / f"cifar/{data}-{network}-{method}.yaml"),
                    cell(f"cifar/{data}-{network}-{method}"),
                )
                assert (config.epochs, config.data.name, config.model.name) == (200, data, network)
                assert [own[f"optimizer.{key}"] for key in ("name", "lr", "momentum", "weight_decay")] == [
                    *("sgd", 0.1, 0.9, 5e-4)
                ]
                schedule = [own[f"schedule.{key}"] for key in ("name", "milestones", "gamma")]
                assert schedule == (["cosine", [], 0.2] if data == "cifar10" else ["multistep", [60, 120, 160], 0.2])
                each = (("hflip",), ("vflip",), ("randaugment",))
                single = (("hflip", "vflip", "randaugment"),)
                assert config.replicas == (each if method == "lookaround" else single)
                assert config.augment.before == ("crop",)
                assert config.augment.after == ("rotation",)
                assert (config.data.batch_size, config.average.k) == (128, 5)
                assert config.trajectory.name == (method if method in ("swa", "swad") else "none")
                assert (config.optimizer.lookahead is not None) == (method == "lookahead")


def test_what_the_paper_says_of_other_tables() -> None:
    swa = cell("cifar/cifar100-resnet50-swa")
    assert [swa[f"trajectory.{key}"] for key in ("start", "every", "swa_lr")] == [160, "epoch", 0.05]
    swad = cell("cifar/cifar10-vgg19-swad")
    assert [swad[f"trajectory.{key}"] for key in ("n_converge", "n_tolerance", "ratio")] == [3, 6, 0.3]
    assert swad["data.validation"] == 5000
    imagenet = cell("imagenet/imagenet-resnet50-lookaround")
    assert [imagenet[f"schedule.{key}"] for key in ("milestones", "gamma")] == [[30, 60, 90], 0.1]
    vit = cell("finetune/cifar10-vit-adam")
    assert [vit[f"optimizer.{key}"] for key in ("name", "lr", "weight_decay", "options")] == [
        *("adam", 1e-5, 0.01, {"betas": [0.9, 0.999]})
    ]
    assert vit["data.batch_size"] == 64
    snapshot = cell("ensembles/cifar100-resnet50-snapshot")
    assert [snapshot["schedule.name"], snapshot["schedule.cycles"]] == ["cosine", 4]
    assert load_config(PAPER / "k/cifar100-resnet50-kepoch.yaml").average.period(391) == 391
    six = load_config(PAPER / "replicas/cifar100-resnet50-d6.yaml").replicas
    assert six == (("vflip",), ("hflip",), ("randaugment",), ("autoaugment",), ("perspective",), ("equalize",))
    starts = [load_config(path).model.seed for path in sorted(PAPER.glob("ensembles/*-soup-*.yaml"))]
    assert starts == [0] * 6


def test_what_the_paper_leaves_open_is_marked() -> None:
    """k, at least, is nowhere stated, and every file that a cell is made of that assumes something gives a reason."""
    text = "\n".join(path.read_text() for path in PAPER.rglob("*.yaml"))
    assumptions = re.findall(r"# assumed: (.+)", text)
    assert len(assumptions) >= 15
    assert all(len(reason.split()) >= 2 for reason in assumptions)
    assert any(reason.startswith("k = 5") for reason in assumptions)
