"""What would be trained and made, and what is said of it; runs are written by hand, nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lookaround_ddp.cli import main
from lookaround_ddp.config import DataConfig, load_config
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.reproduce.estimate import iterations, training_images
from lookaround_ddp.reproduce.plan import make_plan
from tests.report.test_report import markdown
from tests.support.cells import POINTS, config_of
from tests.support.records import finished_run, score
from tests.support.runs import ROOT


def test_each_is_trained_once_and_ingredients_before_what_is_made_of_them(table: Path) -> None:
    plan = make_plan(["table", "table/a.yaml"], ["precision=bf16"], seeds=(0, 1))
    runs = [str(run.relative_to("runs")) for run in plan.trainings]
    assert [run for run in runs if "s1" not in run] == [
        "table/a-s0",
        *(f"table/{name}" for name in POINTS),
        "other/b-s0",
    ]
    assert len(runs) == 8
    training = plan.trainings[Path("runs/table/grid-s1/optimizer.lr=0.01")]
    values = ['out="runs/table/grid-s1/optimizer.lr=0.01"', "seed=1", "precision=bf16", "optimizer.lr=0.01"]
    assert training.arguments == ["table/grid.yaml", *values]
    assert load_config(table / "grid.yaml", values) == training.config
    made = {
        str(run.relative_to("runs/table")): (each.kind, [str(of.run.name) for of in each.of])
        for run, each in plan.makings.items()
    }
    lr = ["optimizer.lr=0.1", "optimizer.lr=0.01"]
    for seed in (0, 1):
        assert made[f"grid-s{seed}"] == ("winner", lr)
        assert made[f"mixed-s{seed}"] == ("ensemble", [*lr, f"b-s{seed}"])
        assert made[f"soup-s{seed}"] == ("soup", [f"b-s{seed}", f"a-s{seed}"])
    assert plan.quoted == ["table/theirs"]


def test_the_paper_by_number_by_name_and_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    name = "cifar/cifar10-resnet50-sgdm"
    numbered, named = make_plan(["6"]), make_plan(["ablation"])
    assert list(numbered.trainings) == list(named.trainings)
    assert Path("runs/paper/ablation/cifar100-resnet50-both-s0") in named.trainings
    assert list(make_plan([f"configs/paper/{name}.yaml"]).trainings) == [Path(f"runs/paper/{name}-s0")]
    assert list(make_plan([f"configs/paper/{name}.yaml"], runs=tmp_path).trainings) == [tmp_path / f"{name}-s0"]


def test_the_listing(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """960 of digits' images in batches of 32, 5 times: 150 iterations. Nobody knows how many a folder has."""
    finished_run(Path("runs/table/a-s0"), config_of("a-s0"), score(90))
    begun = Path("runs/table") / POINTS[0]
    begun.mkdir(parents=True)
    (begun / "config.yaml").touch()
    (begun / "LATEST").write_text("60\n")
    Path("table/photos.yaml").write_text("data: {name: imagefolder, root: nowhere}\n")
    main(["reproduce", "table", "--dry-run"])
    listing, total = capsys.readouterr().out.split("\n\n")
    heading, _, *rows = markdown(listing)
    assert heading == ["run", "what", "processes", "replicas", "iterations", "state"]
    assert rows == [
        ["runs/table/a-s0", "training", "2", "2", "150", "done"],
        [f"runs/table/{POINTS[0]}", "point", "2", "2", "150", "begun: 60"],
        [f"runs/table/{POINTS[1]}", "point", "2", "2", "150", "to do"],
        ["runs/other/b-s0", "training", "2", "1", "150", "to do"],
        ["runs/table/photos-s0", "training", "2", "3", "?", "to do"],
        ["runs/table/grid-s0", "winner of 2", "-", "-", "-", "to do"],
        ["runs/table/mixed-s0", "ensemble of 3", "-", "-", "-", "to do"],
        ["runs/table/soup-s0", "soup of 2", "-", "-", "-", "to do"],
        ["table/theirs", "quoted", *["-"] * 4],
    ]
    assert total == (
        "5 trainings: 1 done, 1 begun, 3 to do, 390 iterations, and those of 1 whose images are not here. "
        "To be made of runs: 3.\n"
    )


def test_the_length_of_runs() -> None:
    digits = open_dataset(DataConfig(), seed=0)
    assert training_images(DataConfig()) == len(digits.train)
    assert training_images(DataConfig(name="cifar10", validation=5000)) == 45_000
    assert training_images(DataConfig(name="imagefolder", root="nowhere", train_images=70, validation=30)) == 70
    sizes = [(load_config(None, ["data.name=cifar100", f"data.drop_last={last}"])) for last in ("true", "false")]
    assert [iterations(config) for config in sizes] == [20 * 390, 20 * 391]


def test_a_folder_of_images_is_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    assert training_images(DataConfig(name="imagefolder", root=str(tmp_path), validation=1)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table", "out=there"), "out is another one for each run: use --runs"),
        (("table", "seed=1"), "seed is another one for each run: use --seeds"),
        (("nowhere.yaml",), "there is no file or folder nowhere.yaml"),
        (("nowhere",), "there is no table 'nowhere': known are 1, "),
        (("cifar",), "the configs of table cifar are not in "),
        (("empty",), "there are no .yaml files in empty"),
        (("table", "optimizer.lrr=1"), "unknown key optimizer.lrr"),
        (("table/mixed.yaml", "optimizer.lr=0.3"), "made of all points of table/grid.yaml: leave optimizer.lr out"),
        (("table", "--seeds", "0,x"), "'0,x' is no list of numbers such as 0,1,2"),
        (
            ("twins/table/a.yaml", "table/a.yaml"),
            "the runs of twins/table/a.yaml and table/a.yaml would both be runs/table/a-s0: rename one or its folder",
        ),
        (("twins/table/mixed.yaml", "table/mixed.yaml"), "table/mixed.yaml would both be runs/table/mixed-s0: rename"),
        (("twins/table/grid.yaml", "table/grid.yaml"), "table/grid.yaml would both be runs/table/grid-s0: rename"),
        (("bad/few.yaml",), "recipe bad/few.yaml: recipe top:3: there are only 2 runs"),
        (("bad/starts.yaml",), "b-s0 does not start from the weights that runs/bad/c-s0 starts from"),
        (("bad/never.yaml",), "never-averaged-s0 has no single model: its replicas are never averaged"),
        (("bad/held.yaml",), "runs/bad/c-s0 has no held-out images to select by: set data.validation, or by: test"),
        (("bad/alone.yaml",), "runs/bad/one-s0 has no score on held-out images, as one network that is never averaged"),
        (("bad/other.yaml",), "runs/bad/more-s0 holds out other images than runs/other/b-s0: give them the same"),
        (("bad/clothes.yaml",), "runs/bad/fashion-s0 has data.name fashion_mnist, and runs/other/b-s0 has digits"),
        (("bad/greedy.yaml",), "selects by held-out images, and runs/bad/c-s0 held out none: set data.validation"),
        (("bad/data.yaml",), "fashion-s0 has data.name fashion_mnist, and runs/other/b-s0 has digits"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(
    table: Path, arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("bad", "empty", "twins/table"):
        Path(folder).mkdir(parents=True)
    bad = {
        "c": "replicas: [[hflip]]\nmodel: {width: 4}",
        "fashion": "data: {name: fashion_mnist}",
        "never-averaged": "model: {seed: 0}\naverage: {k: never}",
        "few": "recipe: soup\nof: [../table/a, ../other/b]\nselect: top:3",
        "starts": "recipe: soup\nof: [c, ../other/b]\nselect: uniform",
        "never": "recipe: soup\nof: [../other/b, never-averaged]\nselect: uniform",
        "held": "recipe: best\nof: [../other/b, c]",
        "one": "base: ../other/b.yaml\naverage: {k: never}",
        "alone": "recipe: best\nof: [../other/b, one]",
        "more": "base: ../other/b.yaml\ndata: {validation: 80}",
        "other": "recipe: best\nof: [../other/b, more]",
        "clothes": "recipe: best\nof: [../other/b, fashion]\nby: test",
        "greedy": "recipe: soup\nof: [../other/b, c]",
        "data": "recipe: ensemble\nof: [../other/b, fashion]",
    }
    for name, text in bad.items():
        Path("bad", f"{name}.yaml").write_text(text)
    Path("twins/table/a.yaml").write_text("epochs: 1")
    Path("twins/table/mixed.yaml").write_text("recipe: ensemble\nof: [../../other/b]")
    Path("twins/table/grid.yaml").write_text("base: ../../other/b.yaml")
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_runs_that_were_trained_with_other_values(table: Path) -> None:
    """How they were computed does not matter, nor where their data was, nor what became of `auto`."""
    own = config_of(
        "a-s0", precision="bf16", data=DataConfig(validation=40, batch_size=32, root="elsewhere", pipeline="device")
    )
    finished_run(Path("runs/table/a-s0"), own, score(90))
    make_plan(["table/a.yaml"])  # auto is the default
    with pytest.raises(
        UserError, match=r"^runs/table/a-s0 was trained with other values \(data.pipeline: device -> wor"
    ):
        make_plan(["table/a.yaml"], ["data.pipeline=workers"])
    with pytest.raises(UserError, match=r"values \(epochs: 5 -> 6\): give the same ones or other --runs$"):
        make_plan(["table/a.yaml"], ["epochs=6"])
