"""The config files: each can be built, and those of the paper say what the paper says."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.rounds import lengths
from lookaround_ddp.config.schema import DataConfig, ModelConfig
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.models.factory import create_model
from lookaround_ddp.optim.factory import create_optimizer
from lookaround_ddp.report.cells import read_cells, trained_values
from lookaround_ddp.report.runs import without_seeds
from tests.support.configs import CONFIGS, PAPER, TRAININGS, kind, trained
from tests.support.runs import ROOT


@cache
def parameters(name: str) -> int:
    """The number of a network's parameter tensors."""
    with torch.device("meta"):
        return sum(1 for _ in create_model(ModelConfig(name=name), 10, 3).parameters())


@cache
def digits() -> Dataset:
    return open_dataset(DataConfig(), seed=0)


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_config_can_be_built_and_opens_with_its_command(path: Path) -> None:
    config = trained(path)
    assert parameters(config.model.name) > 20
    assert all(train_pipelines(config.augment, own, digits(), config.label_smoothing) for own in config.replicas)
    create_optimizer(config.optimizer, torch.nn.Linear(2, 2))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"lookaround_ddp train {path.relative_to(ROOT)}" in line for line in head)


def test_there_are_configs() -> None:
    assert len(TRAININGS) > 230


def test_each_cell_of_the_paper_has_a_config_and_each_config_its_cell() -> None:
    """Each that trains does so into a folder of its own. `figures` has what no table has."""
    cells = [PAPER / cell.table / f"{cell.config}.yaml" for cell in read_cells()]
    own = [path for path in CONFIGS if path.is_relative_to(PAPER) and path.parent.name != "figures"]
    assert sorted(cells) == own
    runs = [path for path in cells if kind(path) != "recipe"]
    outs = [trained(path).out for path in runs]
    assert outs == [f"runs/paper/{path.parent.name}/{path.stem}" for path in runs]
    made = [(path.parent, json.dumps(without_seeds(trained(path)), sort_keys=True)) for path in runs]
    assert len(set(made)) == len(runs)  # no two cells of a table are the same run


def cell(name: str) -> dict[str, object]:
    """The values of a cell's config, as `section.key`."""
    values = trained(PAPER / f"{name}.yaml").model_dump(mode="json")
    return {f"{section}.{key}": v for section, own in values.items() if isinstance(own, dict) for key, v in own.items()}


def test_what_the_paper_says_of_cifar() -> None:
    """C.1.1 and C.5: lr 0.1, batch 128, 200 epochs, one of warm-up; a cosine, or 60/120/160 x 0.2 and a rotation."""
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
                schedule = [own[f"schedule.{key}"] for key in ("name", "milestones", "gamma", "warmup_epochs")]
                steps = ["cosine", [], 0.2, 1] if data == "cifar10" else ["multistep", [60, 120, 160], 0.2, 1]
                assert schedule == steps
                each = (("hflip",), ("vflip",), ("randaugment",))
                single = (("hflip", "vflip", "randaugment"),)
                assert config.replicas == (each if method == "lookaround" else single)
                assert config.augment.before == ("crop",)
                assert config.augment.after == (() if data == "cifar10" else ("rotation",))
                assert (config.data.batch_size, config.average.k) == (128, 5)
                assert config.trajectory.name == (method if method in ("swa", "swad") else "none")
                assert (config.optimizer.lookahead is not None) == (method == "lookahead")


def test_the_configs_beside_the_papers_cells_are_the_same_runs() -> None:
    """A run of one counts in the paper's table that its first lines name."""
    for name, same in (
        ("cifar10/resnet18-lookaround", "dart/cifar10-resnet18-lookaround"),
        ("cifar100/resnet50-lookaround", "cifar/cifar100-resnet50-lookaround"),
        ("imagenet/resnet50-lookaround", "imagenet/imagenet-resnet50-lookaround"),
    ):
        config = trained(ROOT / "configs" / f"{name}.yaml")
        assert trained_values(config) == trained_values(trained(PAPER / f"{same}.yaml"))


def test_what_the_paper_says_of_other_tables() -> None:
    swa = cell("cifar/cifar100-resnet50-swa")
    assert [swa[f"trajectory.{key}"] for key in ("start", "every", "swa_lr")] == [160, "epoch", 0.05]
    swad = cell("cifar/cifar10-vgg19-swad")
    assert [swad[f"trajectory.{key}"] for key in ("n_converge", "n_tolerance", "ratio")] == [3, 6, 0.3]
    assert swad["data.validation"] == 5000
    imagenet = cell("imagenet/imagenet-resnet50-lookaround")
    assert [imagenet[f"schedule.{key}"] for key in ("milestones", "gamma")] == [[30, 60, 90], 0.1]
    assert imagenet["data.batch_size"] == 256
    snapshot = cell("ensembles/cifar100-resnet50-snapshot")
    assert [snapshot["schedule.name"], snapshot["schedule.cycles"]] == ["cosine", 4]
    assert lengths(load_config(PAPER / "k/cifar100-resnet50-kepoch.yaml").average.k, 391) == [(0, 391)]
    six = load_config(PAPER / "replicas/cifar100-resnet50-d6.yaml").replicas
    assert six == (("vflip",), ("hflip",), ("randaugment",), ("autoaugment",), ("perspective",), ("equalize",))
    starts = [load_config(path).model.seed for path in sorted(PAPER.glob("ensembles/*-soup-*.yaml"))]
    assert starts == [0] * 6


def test_what_the_paper_says_of_fine_tuning() -> None:
    """C.2: 50 epochs at 224 px; ResNet-50's rate and decay are of table 8's grid, and SWA's start is within the run."""
    for data in ("cifar10", "cifar100"):
        for name in ("resnet50-sgdm", "resnet50-swa", "resnet50-lookahead", "resnet50-lookaround", "vit-swa"):
            config, own = trained(PAPER / f"finetune/{data}-{name}.yaml"), cell(f"finetune/{data}-{name}")
            assert (config.epochs, config.data.size, config.data.name) == (50, 224, data)
            each = (("hflip",), ("randaugment",), ("autoaugment",))
            assert config.replicas == (each if "lookaround" in name else (("hflip", "randaugment", "autoaugment"),))
            assert own["trajectory.start"] == (40 if "swa" in name else 0)
            if "vit" not in name:
                assert (config.model.name, config.data.batch_size) == ("timm:resnet50.tv_in1k", 128)
                assert config.optimizer.lr in (0.001, 0.003, 0.01, 0.03)
                assert config.optimizer.weight_decay in (1e-4, 5e-5, 1e-5)
        for name in ("finetune/{}-vit-adam", "finetune/{}-vit-lookaround", "sam/{}-vit-lookaround-sam"):
            vit = cell(name.format(data))
            assert [vit[f"optimizer.{key}"] for key in ("name", "lr", "weight_decay", "options")] == [
                *("adam", 1e-5, 0.01, {"betas": [0.9, 0.999]})
            ]
            assert [vit["data.batch_size"], vit["schedule.name"], vit["schedule.milestones"]] == [64, "cosine", []]


def test_what_the_paper_says_of_sam_and_of_cars() -> None:
    """Table 4's SAM has its own default radius, Lookaround + SAM has three replicas; table 9's data are H, R, A."""
    for name in ("resnet50-32", "resnet50-224", "vit"):
        for method, replicas in (("sam", 1), ("lookaround", 3), ("lookaround-sam", 3)):
            config = trained(PAPER / f"sam/cifar100-{name}-{method}.yaml")
            assert (len(config.replicas), sum(map(len, config.replicas))) == (replicas, 3)
            assert (config.optimizer.sam.rho if config.optimizer.sam else None) == (0.05 if "sam" in method else None)
    for name, own in (("swa-hflip", [["hflip"]]), ("logit-hr", [["hflip"], ["randaugment"]])):
        values = trained(PAPER / f"cars/cars-resnet18-{name}.yaml").model_dump(mode="json")
        assert values["replicas"] == own
        assert values["model"]["name"] == "timm:resnet18.tv_in1k"
    for path in PAPER.glob("cars/*.yaml"):
        assert not any("vflip" in entries for entries in trained(path).replicas)
    both = cell("cars/cars-resnet18-logit-swa-hra")
    assert [both["average.k"], both["trajectory.name"], both["trajectory.start"]] == ["never", "swa", 40]


def test_the_authors_code() -> None:
    """Commit e57681f: the rate rises to 0.1 in one epoch, the cosine ends at 1e-5; AutoAugment in vflip's place."""
    for data in ("cifar10", "cifar100"):
        for method in ("sgdm", "swa", "lookaround"):
            own = cell(f"code/{data}-resnet50-{method}")
            assert [own["optimizer.lr"], own["schedule.warmup_epochs"], own["data.drop_last"]] == [0.1, 1, True]
            assert own["schedule.min_lr"] == (1e-5 if data == "cifar10" else 0)
            assert own["augment.after"] == ([] if data == "cifar10" else ["rotation"])
    replicas = trained(PAPER / "code/cifar10-resnet50-lookaround.yaml").replicas
    assert replicas == (("hflip",), ({"autoaugment": {"policy": "imagenet"}},), ("randaugment",))


def test_what_the_paper_leaves_open_is_marked() -> None:
    """k, at least, is nowhere stated, and every file that a cell is made of that assumes something gives a reason."""
    text = "\n".join(path.read_text() for path in PAPER.rglob("*.yaml"))
    assumptions = re.findall(r"# assumed: (.+)", text)
    assert len(assumptions) >= 30
    assert all(len(reason.split()) >= 2 for reason in assumptions)
    for what in ("k = 5", "momentum 0.9, weight decay 5e-4", "one epoch of warm-up", "they share their start"):
        assert any(what in reason for reason in assumptions)
