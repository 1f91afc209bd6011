"""Each cell of the paper's tables has a file, and those that train have the paper's networks and augmentations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lookaround_ddp.config import Config, DataConfig
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.models.factory import empty_model
from lookaround_ddp.report.paper import read_cells
from tests.support.configs import PAPER, kind, trained, values
from tests.support.runs import ROOT

CELLS = [PAPER / cell.table / f"{cell.config}.yaml" for cell in read_cells()]
KEYS = {
    "ensemble": {"recipe", "of"},
    "soup": {"recipe", "of", "select", "update_bn"},
    "best": {"recipe", "of", "by"},
    "quoted": {"recipe"},
}
POINTS = {"optimizer.lr": [0.001, 0.003, 0.01, 0.03], "optimizer.weight_decay": [1e-4, 5e-5, 1e-5]}


def ingredients(path: Path) -> list[Path]:
    return [path.parent / f"{name}.yaml" for name in values(path).get("of", [])]


@pytest.mark.parametrize("path", [path for path in CELLS if kind(path) == "recipe"], ids=lambda path: path.stem)
def test_a_recipe_is_made_of_cells(path: Path) -> None:
    recipe, of = values(path), ingredients(path)
    assert recipe.keys() == KEYS[recipe["recipe"]]
    assert set(of) <= set(CELLS)
    assert len(set(of)) == len(of) != 1
    configs = [trained(each) for each in of]
    assert len({(config.data.name, config.model.name) for config in configs}) == (1 if of else 0)
    if recipe["recipe"] == "soup":
        assert recipe["select"] in ("uniform", "top:10", "greedy")
        assert {config.model.seed for config in configs} == {0}  # one start, head included
        assert {(config.data.validation, config.data.split_seed) for config in configs} == {(5000, 0)}
    if recipe["recipe"] == "best":
        assert recipe["by"] == "test"


def test_what_the_recipes_are() -> None:
    found = {
        path.parent.name + "/" + path.stem: [values(path)["recipe"], *map(trained, ingredients(path))]
        for path in CELLS
        if kind(path) == "recipe"
    }
    kinds = [each[0] for each in found.values()]
    assert {name: kinds.count(name) for name in KEYS} == {"ensemble": 3, "soup": 8, "best": 4, "quoted": 2}
    _, lookaround, logit = found["ensembles/cifar100-resnet152-lookaround-logit"]
    assert (lookaround.model.name, lookaround.average.k, len(lookaround.replicas)) == ("resnet152", 5, 3)
    assert (logit.model.name, logit.average.k, logit.replicas) == ("resnet152", "never", lookaround.replicas)
    _, *neither = found["ablation/cifar10-resnet50-neither-best"]
    assert [config.replicas for config in neither] == [(("hflip",),), (("vflip",),), (("randaugment",),)]
    _, *eighteen = found["soups/cifar100-resnet50-soup-greedy-bn"]
    made = {(config.replicas[0][0], config.optimizer.lr, config.label_smoothing > 0) for config in eighteen}
    every = ("hflip", "randaugment", "autoaugment"), (0.01, 0.003, 0.001), (False, True)
    assert made == {(one, rate, smooth) for one in every[0] for rate in every[1] for smooth in every[2]}
    assert {(config.epochs, config.optimizer.weight_decay) for config in eighteen} == {(50, 1e-4)}


def test_the_sweeps_are_the_grid_of_table_8() -> None:
    sweeps = [path for path in CELLS if kind(path) == "sweep"]
    assert [path.stem for path in sweeps] == ["cifar10-resnet50-sgdm", "cifar100-resnet50-sgdm"]
    for path in sweeps:
        config = trained(path)
        assert values(path)["sweep"] == POINTS
        assert (config.epochs, config.data.batch_size, config.data.validation) == (50, 128, 5000)
        assert config.replicas == (("hflip", "randaugment", "autoaugment"),)


PRINTED = {  # millions of parameters in table 3, for 10 and 100 classes; ViT's without positions and class token
    "resnet50": (23.52, 23.71),
    "timm:resnet50.tv_in1k": (23.52, 23.71),
    "timm:vit_base_patch16_384.orig_in21k_ft_in1k": (85.65, 85.72),
}


def test_networks_have_the_parameters_that_the_paper_prints() -> None:
    """Within a hundredth, since some are cut rather than rounded: torchvision's ResNet-50 has 23,528,522."""
    tables = ("finetune", "sam", "sweep", "k-pretrained", "soups")
    configs = [trained(path) for path in CELLS if path.parent.name in tables and kind(path) != "recipe"]
    found = {(config.model.name, config.data.name): config.model for config in configs}
    assert found.keys() - {("resnet18", "cifar10"), ("resnet18", "cifar100")} == {
        (name, data) for name in PRINTED for data in ("cifar10", "cifar100")
    }
    for (name, data), model in found.items():
        if name not in PRINTED:  # our own comparison
            continue
        with torch.device("meta"):
            network = empty_model(model, 10 if data == "cifar10" else 100, 3)
        count = sum(p.numel() for key, p in network.named_parameters() if key not in ("pos_embed", "cls_token"))
        assert abs(count / 1e6 - PRINTED[name][data == "cifar100"]) < 0.01


SCRATCH = ("RandomHorizontalFlip", "RandomVerticalFlip", "RandAugment")  # C.1.1 and C.1.2
FINETUNED = ("RandomHorizontalFlip", "RandAugment", "AutoAugment")  # C.2; "H", "R", "A" of table 9
SIX = ("RandomVerticalFlip", "RandomHorizontalFlip", *FINETUNED[1:], "RandomPerspective", "RandomEqualize")  # C.6
LISTS = {  # a config, what its pipelines have before and after their own augmentations, and these
    "cifar10/resnet18-lookaround": ("RandomCrop", "", SCRATCH),
    "cifar100/resnet50-lookaround": ("RandomCrop", "RandomRotation", SCRATCH),
    "imagenet/resnet50-lookaround": ("RandomResizedCrop", "RandomRotation", SCRATCH),
    "paper/cifar/cifar10-resnet50-lookaround": ("RandomCrop", "", SCRATCH),
    "paper/cifar/cifar10-vgg19-sgdm": ("RandomCrop", "", SCRATCH),
    "paper/cifar/cifar100-resnext50-lookaround": ("RandomCrop", "RandomRotation", SCRATCH),
    "paper/cifar/cifar100-resnet101-swa": ("RandomCrop", "RandomRotation", SCRATCH),
    "paper/imagenet/imagenet-resnet50-sgdm": ("RandomResizedCrop", "RandomRotation", SCRATCH),
    "paper/finetune/cifar10-resnet50-lookaround": ("Resize RandomCrop", "", FINETUNED),
    "paper/finetune/cifar100-vit-lookahead": ("Resize RandomCrop", "RandomRotation", FINETUNED),
    "paper/sam/cifar100-resnet50-224-sam": ("Resize RandomCrop", "RandomRotation", FINETUNED),
    "paper/cars/cars-resnet18-lookaround-hra": ("RandomResizedCrop", "", FINETUNED),
    "paper/cars/cars-resnet18-swa-autoaugment": ("RandomResizedCrop", "", ("AutoAugment",)),
    "paper/replicas/cifar100-resnet50-d6": ("RandomCrop", "RandomRotation", SIX),
    "paper/figures/figure6-lookaround": ("RandomCrop", "RandomRotation", ("RandomHorizontalFlip", "RandAugment")),
    "paper/figures/figure7-v": ("RandomCrop", "", ("RandomVerticalFlip",)),  # appendix A
    "paper/figures/figure7-r": ("RandomCrop", "", ("RandAugment",)),
}


def like(config: Config) -> Dataset:
    """Returns a dataset whose images have the sizes that the config's have."""
    native = 32 if config.data.name.startswith("cifar") else None
    return replace(open_dataset(DataConfig(), seed=0), native=native, size=config.data.size or native or 224)


@pytest.mark.parametrize("name", LISTS)
def test_pipelines_are_the_papers_lists(name: str) -> None:
    config = trained(ROOT / "configs" / f"{name}.yaml")
    before, after, own = LISTS[name]
    made = [each for entries in config.replicas for each in train_pipelines(config.augment, entries, like(config), 0.0)]
    steps = [[type(step).__name__ for _, step in pipeline.named] for pipeline in made]
    assert steps == [[*before.split(), each, *after.split()] for each in own]
    side = 32 if "Resize" not in before and config.data.name.startswith("cifar") else 224
    assert {step.size for pipeline in made for _, step in pipeline.named if hasattr(step, "size")} == {(side, side)}
