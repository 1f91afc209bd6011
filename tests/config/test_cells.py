"""Cells that are no single run: recipes, sweeps, and what is said of those that cannot be followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.config import Config, Recipe, Sweep, load_cell, load_config, load_ingredients
from lookaround_ddp.errors import UserError

BASE = "data: {validation: 50, batch_size: 16}\noptimizer: {momentum: 0.5}\n"
GRID = "base: base.yaml\nepochs: 3\nsweep: {optimizer.lr: [0.1, 1e-3], average.k: [3, epoch]}\n"


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


def mistake(path: Path, *overrides: str) -> str:
    """What is said of a file: a line, without its folder."""
    with pytest.raises(UserError) as raised:
        load_cell(path, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value).replace(f"{path.parent}/", "")


def test_a_sweep_is_all_combinations_in_order(grid: Path) -> None:
    sweep = load_cell(grid, ["optimizer.momentum=0.25"])
    assert isinstance(sweep, Sweep)
    assert (sweep.keys, sweep.whole) == (("optimizer.lr", "average.k"), True)
    assert [point.name for point in sweep.points] == [
        "optimizer.lr=0.1,average.k=3",
        "optimizer.lr=0.1,average.k=epoch",
        "optimizer.lr=0.001,average.k=3",
        "optimizer.lr=0.001,average.k=epoch",
    ]
    assert sweep.points[3].overrides == ("optimizer.lr=0.001", "average.k=epoch")
    values = [(each.config.optimizer.lr, each.config.average.k) for each in sweep.points]
    assert values == [(0.1, 3), (0.1, "epoch"), (0.001, 3), (0.001, "epoch")]
    for point in sweep.points:  # the file's, its base's, the command line's
        assert (point.config.epochs, point.config.data.batch_size, point.config.optimizer.momentum) == (3, 16, 0.25)


def test_a_point_of_a_sweep_is_an_ordinary_config(grid: Path) -> None:
    """What `train` and a SLURM array are given. With one of the keys it is a smaller sweep, and still none for them."""
    sweep = load_cell(grid)
    assert isinstance(sweep, Sweep)
    assert load_config(grid, ["average.k=epoch", "optimizer.lr=1e-3"]) == sweep.points[3].config
    assert load_config(grid, ["average.k=7", "optimizer.lr=0.5"]).average.k == 7  # no value of the list
    part = load_cell(grid, ["average.k=3"])
    assert isinstance(part, Sweep)
    assert (part.given, part.whole) == (("average.k",), False)
    assert part.points == (sweep.points[0], sweep.points[2])
    for overrides, left in (([], "optimizer.lr=VALUE average.k=VALUE"), (["average.k=3"], "optimizer.lr=VALUE")):
        with pytest.raises(UserError) as raised:
            load_config(grid, overrides)
        expected = f"{grid} is a sweep: `reproduce {grid}` trains all its points; for one of them add {left}"
        assert str(raised.value) == expected


def test_a_file_that_is_based_on_a_sweep(grid: Path) -> None:
    """It sweeps too, unless it says otherwise."""
    other = grid.with_name("other.yaml")
    other.write_text("base: grid.yaml\nsweep: {optimizer.lr: [0.5]}\n")
    found = load_cell(other)
    assert isinstance(found, Sweep)
    assert [point.name for point in found.points] == [
        "optimizer.lr=0.5,average.k=3",
        "optimizer.lr=0.5,average.k=epoch",
    ]
    other.write_text("base: grid.yaml\nsweep: null\n")
    assert load_config(other).epochs == 3


def test_values_that_are_no_words(grid: Path) -> None:
    """Their folders have plain names; what `train` is given is read as the same values again."""
    grid.write_text(BASE + 'sweep: {model.name: ["timm:resnet18"], replicas: [[[hflip], ["a b"]]], snapshots: [false]}')
    sweep = load_cell(grid)
    assert isinstance(sweep, Sweep)
    (point,) = sweep.points
    assert point.name == "model.name=timm-resnet18,replicas=-hflip-a-b-,snapshots=false"
    assert point.overrides == ("model.name=timm:resnet18", 'replicas=[["hflip"], ["a b"]]', "snapshots=false")
    assert load_config(grid, point.overrides) == point.config
    grid.write_text(BASE + 'sweep: {precision: ["fp32"], model.pretrained: ["1e-3", "a: b"]}')
    sweep = load_cell(grid)
    assert isinstance(sweep, Sweep)
    assert [load_config(grid, each.overrides).model.pretrained for each in sweep.points] == ["1e-3", "a: b"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[optimizer.lr]", "it maps keys to lists of values, such as {optimizer.lr: [0.1, 0.01]}, and is ['optim"),
        ("{}", "it maps keys to lists of values, such as {optimizer.lr: [0.1, 0.01]}, and is {}"),
        ("{optimizer.lr: []}", "optimizer.lr is []: give it a list of values"),
        ("{optimizer.lr: 0.1}", "optimizer.lr is 0.1: give it a list of values"),
        ("{optimizer: {lr: [0.1]}}", "optimizer is {'lr': [0.1]}: give it a list of values"),
        ("{optimizer.lrr: [1]}", ", optimizer.lrr=1: unknown key optimizer.lrr: did you mean optimizer.lr?"),
        ("{optimizer.lr: [0.1, -1]}", ", optimizer.lr=-1: optimizer.lr is -1: should be greater than 0"),
        ("{optimizer.lr: [0.1], average.k: [0]}", ", optimizer.lr=0.1 average.k=0: average.k is 0"),
        ("{epochs.x: [1]}", ", epochs.x=1: 'epochs.x=1': epochs is a value, not a section"),
        ("{optimizer.lr: [0.1, 1e-1]}", "two of its points would be in one folder, optimizer.lr=0.1"),
        ("{seed: [0, 1]}", "seed cannot be swept: it is chosen for every point (`reproduce --seeds`)"),
        ("{data.validation: [0]}", "its winner is selected by held-out images: set data.validation"),
        ("{data.validation: [10, 20]}", "its points hold out different images, and cannot be compared"),
        (
            "{replicas: [[[hflip]], [[hflip], [vflip]]], average.k: [never, 5]}",
            "on which one network that is never averaged has no score: leave average.k out",
        ),
        ("{1: [2]}", ", 1=2: unknown key 1: known here: out, seed"),
        (
            "{model.name: [!!timestamp 2024-01-01]}",
            "model.name has 2024-01-01, which YAML reads as no text: put it in quotes",
        ),
        (
            "{optimizer.lr: [0.1, 0.01], optimizer: [{name: sgd}, {name: adamw}]}",
            "optimizer.lr would be lost, since optimizer stands after it: put optimizer first",
        ),
        (f"{{model.name: [{'resnet8' * 40}]}}", "is too long for a folder's name: sweep fewer keys or shorter values"),
    ],
)
def test_a_sweep_that_cannot_be_trained(grid: Path, section: str, message: str) -> None:
    grid.write_text(f"base: base.yaml\nepochs: 3\nsweep: {section}\n")
    said = mistake(grid)
    assert said.startswith("sweep grid.yaml")
    assert message in said


def test_a_section_is_swept_before_its_keys(grid: Path) -> None:
    grid.write_text(BASE + "sweep: {optimizer: [{name: sgd}, {name: adamw}], optimizer.lr: [0.5]}\n")
    sweep = load_cell(grid)
    assert isinstance(sweep, Sweep)
    found = [(point.config.optimizer.name, point.config.optimizer.lr) for point in sweep.points]
    assert found == [("sgd", 0.5), ("adamw", 0.5)]


def test_values_below_a_swept_key_would_be_lost(grid: Path) -> None:
    grid.write_text(BASE + "sweep: {optimizer.sam: [{}, {adaptive: true}]}\n")
    said = mistake(grid, "optimizer.sam.rho=0.1")
    assert (
        said
        == "optimizer.sam.rho would be lost, since grid.yaml sweeps optimizer.sam: give optimizer.sam={...} as a whole"
    )


def test_a_recipe_names_its_ingredients(grid: Path) -> None:
    """Values are for their configs, not for it."""
    folder = grid.parent
    (folder / "lower").mkdir()
    recipe = folder / "lower" / "soup.yaml"
    recipe.write_text("recipe: soup\nof: [../grid, ../base]\nselect: top:3\nupdate_bn: true\n")
    found = load_cell(recipe, ["optimizer.momentum=0.25"])
    assert found == Recipe(recipe="soup", of=("../grid", "../base"), select="top:3", update_bn=True)
    assert isinstance(found, Recipe)
    (sweep_file, sweep), (file, config) = load_ingredients(found, recipe, ["optimizer.momentum=0.25"])
    assert [each.resolve() for each in (sweep_file, file)] == [grid, folder / "base.yaml"]
    assert isinstance(sweep, Sweep)
    assert isinstance(config, Config)
    assert config.optimizer.momentum == sweep.points[0].config.optimizer.momentum == 0.25
    with pytest.raises(UserError, match=r"soup.yaml is a recipe, which trains nothing: `reproduce .*soup.yaml` makes"):
        load_config(recipe)
    recipe.write_text("recipe: ensemble\nof: [two]\n")
    recipe.with_name("two.yaml").write_text("recipe: best\nof: [../base]\n")
    found = load_cell(recipe)
    assert isinstance(found, Recipe)
    with pytest.raises(UserError, match=r"ensemble.yaml: .*two.yaml is a recipe, too: name what that|soup.yaml: .*two"):
        load_ingredients(found, recipe)
    recipe.write_text("recipe: quoted  # of the ViT paper\n")
    assert load_cell(recipe) == Recipe(recipe="quoted")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: mix", "recipe is 'mix': should be 'ensemble', 'soup', 'best' or 'quoted'"),
        ("recipe: soup\nselct: greedy", "unknown key selct: did you mean select?"),
        ("recipe: soup\nof: base", "of is 'base': should be a valid list"),
        ("recipe: soup", "of is empty: name the cells that it is made of, files without .yaml"),
        ("recipe: soup\nof: [base, base]", "base is named twice"),
        ("recipe: soup\nof: [base, ./base]", "./base is named twice"),
        ("recipe: soup\nof: [gird]", "there is no gird.yaml: did you mean grid?"),
        ("recipe: soup\nof: [base, ../nowhere/a]", "there is no ../nowhere/a.yaml, which it names"),
        ("recipe: soup\nof: [base]\nselect: best", "select is 'best': use uniform, greedy or top:N"),
        ("recipe: soup\nof: [base]\nselect: top:0", "select is 'top:0': use uniform, greedy or top:N"),
        ("recipe: soup\nof: [base]\nby: test", "by is for recipe: best, and this one is soup"),
        ("recipe: ensemble\nof: [base]\nupdate_bn: true", "update_bn is for recipe: soup, and this one is ensemble"),
        ("recipe: best\nof: [base]\nby: train", "by is 'train': should be 'test' or 'validation'"),
        ("recipe: quoted\nof: [base]", "a quoted figure is made of nothing: leave `of` out"),
    ],
)
def test_a_recipe_that_cannot_be_followed(grid: Path, text: str, message: str) -> None:
    path = grid.with_name("made.yaml")
    path.write_text(text)
    assert mistake(path) == f"recipe made.yaml: {message}"


def test_an_ingredient_that_is_elsewhere_and_misspelt(grid: Path) -> None:
    path = grid.parent / "lower" / "made.yaml"
    path.parent.mkdir()
    path.write_text(f"recipe: soup\nof: [{grid.parent}/gird]\n")
    there = grid.with_suffix("")
    assert mistake(path) == f"recipe made.yaml: there is no {grid.parent}/gird.yaml: did you mean {there}?"
