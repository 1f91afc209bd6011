"""What would be trained and made, and what is said of it; runs are written by hand, nothing is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lookaround_ddp.cli.commands import main
from lookaround_ddp.config import Config, DataConfig, load_config
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.report import read_run
from lookaround_ddp.reproduce.estimate import iterations, training_images
from lookaround_ddp.reproduce.plan import make_plan
from lookaround_ddp.reproduce.run import carry_out, show_results
from tests.report.test_report import markdown
from tests.support.records import finished_run, score
from tests.support.runs import ROOT

FILES = {
    "table/a": "base: ../other/b.yaml\nreplicas: [[hflip], [vflip]]\n",
    "other/b": "data: {validation: 40, batch_size: 32}\nepochs: 5\nreplicas: [[hflip, vflip]]\nmodel: {seed: 0}\n",
    "table/grid": "base: a.yaml\nsweep: {optimizer.lr: [0.1, 0.01]}\n",
    "table/mixed": "recipe: ensemble\nof: [grid, ../other/b]\n",
    "table/soup": "recipe: soup\nof: [../other/b, a]\nselect: top:2\nupdate_bn: true\n",
    "table/theirs": "recipe: quoted\n",
}
POINTS = ["grid-s0/optimizer.lr=0.1", "grid-s0/optimizer.lr=0.01"]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("NNODES", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NPROC", "2")
    return Path("table")


def config_of(run: str, **changed: object) -> Config:
    """What a run of a cell is trained with, by its folder's name."""
    cell, _, seed = run.partition("/")[0].rpartition("-s")
    overrides = run.split("/")[1:]
    file = next(Path(folder) / f"{cell}.yaml" for folder in ("table", "other") if Path(folder, f"{cell}.yaml").exists())
    return load_config(file, overrides).model_copy(update={"seed": int(seed), **changed})


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
        (("twins/table/a.yaml", "table/a.yaml"), "would both be trained in runs/table/a-s0: rename one or its folder"),
        (("bad/few.yaml",), "recipe bad/few.yaml: recipe top:3: there are only 2 runs"),
        (("bad/starts.yaml",), "b-s0 does not start from the weights that runs/bad/c-s0 starts from"),
        (("bad/never.yaml",), "never-averaged-s0 has no single model: its replicas are never averaged"),
        (("bad/held.yaml",), "runs/bad/c-s0 has no held-out images to select by: set data.validation, or by: test"),
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
        "greedy": "recipe: soup\nof: [../other/b, c]",
        "data": "recipe: ensemble\nof: [../other/b, fashion]",
    }
    for name, text in bad.items():
        Path("bad", f"{name}.yaml").write_text(text)
    Path("twins/table/a.yaml").write_text("epochs: 1")
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
    make_plan(["table/a.yaml"], ["data.pipeline=auto"])
    with pytest.raises(
        UserError, match=r"^runs/table/a-s0 was trained with other values \(data.pipeline: device -> wor"
    ):
        make_plan(["table/a.yaml"])
    with pytest.raises(UserError, match=r"values \(epochs: 5 -> 6\): give the same ones or other --runs$"):
        make_plan(["table/a.yaml"], ["data.pipeline=auto", "epochs=6"])


class Fakes:
    """Trains and scores nothing, but leaves results; `top1` of a run is on held-out and on test images."""

    def __init__(self, top1: dict[str, tuple[float, float]], statuses: dict[str, int]) -> None:
        self.top1, self.statuses = top1, statuses
        self.trained: list[str] = []
        self.scored: list[list[str]] = []

    def train(self, arguments: Sequence[str]) -> int:
        out = json.loads(arguments[1].removeprefix("out="))
        run = os.path.relpath(out, "runs/table")
        self.trained.append(run)
        held_out, test = self.top1.get(run, (50.0, 50.0))
        if self.statuses.get(run, 0) == 0:
            finished_run(Path(out), load_config(arguments[0], arguments[1:]), score(test), validation=score(held_out))
        return self.statuses.get(run, 0)

    def score(self, config: Config, arguments: Sequence[str]) -> int:
        self.scored.append(list(arguments))
        return 1


def test_carrying_out_goes_on_after_failures(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The soup cannot be made without b, nor the ensemble; the winner is the better on held-out images."""
    fakes = Fakes({POINTS[0]: (70, 99), POINTS[1]: (71, 60)}, {"../other/b-s0": 1})
    failed = carry_out(make_plan(["table"]), fakes.train, fakes.score)
    assert fakes.trained == ["a-s0", *POINTS, "../other/b-s0"]
    assert failed == ["runs/other/b-s0"]
    said = capfd.readouterr().err
    for name in ("mixed", "soup"):
        assert f"left out: table/{name}, seed 0, since other/b, seed 0 has not finished" in said
    assert "optimizer.lr=0.01 is the best of 2 by held-out images" in said
    result = json.loads(Path("runs/table/grid-s0/result.json").read_text())
    assert result["mean"] == score(60)
    winner = result["winner"]
    assert (winner["name"], winner["overrides"], winner["score"]) == (
        *("optimizer.lr=0.01", ["optimizer.lr=0.01"], score(71)),
    )

    fakes = Fakes({}, {})
    plan = make_plan(["table"])
    assert carry_out(plan, fakes.train, fakes.score) == ["runs/table/mixed-s0", "runs/table/soup-s0"]
    assert fakes.trained == ["../other/b-s0"]
    runs = [f"runs/table/{name}" for name in POINTS] + ["runs/other/b-s0"]
    out = ["--out", "runs/table/soup-s0", "--recipe", "top:2", "--update-bn", "evaluate.recalibrate_iterations=null"]
    assert fakes.scored == [
        ["ensemble", *runs, "--out", "runs/table/mixed-s0"],
        ["soup", "runs/other/b-s0", "runs/table/a-s0", *out],
    ]
    show_results(plan)
    assert [row[:2] for row in markdown(capfd.readouterr().out)[2:]] == [
        ["`a-s0`: mean model", "50.00"],
        ["`grid-s0`: best of 2", "60.00"],
    ]


def test_a_mistake_ends_all(table: Path) -> None:
    fakes = Fakes({}, {POINTS[0]: 2})
    with pytest.raises(SystemExit) as ended:
        carry_out(make_plan(["table"]), fakes.train, fakes.score)
    assert ended.value.code == 2
    assert fakes.trained == ["a-s0", POINTS[0]]


def test_some_points_of_a_sweep(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on one of several machines: the winner waits for all of them, and is not selected again."""
    fakes = Fakes({}, {})
    assert carry_out(make_plan(["table/grid.yaml"], ["optimizer.lr=0.01"]), fakes.train, fakes.score) == []
    assert fakes.trained == [POINTS[1]]
    assert not Path("runs/table/grid-s0/result.json").exists()
    main(["report", "--brief", "runs/table/grid-s0", f"runs/table/{POINTS[1]}"])
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "runs/table/grid-s0: a sweep that has not finished; its points are in it"
    assert [row[0] for row in markdown(said.out)[2:]] == ["`optimizer.lr=0.01`: mean model"]
    carry_out(make_plan(["table/grid.yaml"]), fakes.train, fakes.score)
    assert fakes.trained == [POINTS[1], POINTS[0]]
    assert read_run(Path("runs/table/grid-s0")).winner["name"] == "optimizer.lr=0.1"  # the first of equals
    assert not make_plan(["table/grid.yaml"]).trainings
    with pytest.raises(UserError, match="grid-s0 was made otherwise, or of runs with other values: delete it or give"):
        make_plan(["table/grid.yaml"], ["epochs=6"])


def test_the_best_of_several_on_test_images(table: Path) -> None:
    """Equals are told apart by their NLL."""
    Path("table/best.yaml").write_text("recipe: best\nof: [a, ../other/b, grid]\nby: test\n")
    for run, found in (("table/a-s0", score(60, nll=0.5)), ("other/b-s0", score(60, nll=0.4))):
        finished_run(Path("runs") / run, config_of(run.partition("/")[2]), found)
    fakes = Fakes(dict.fromkeys(POINTS, (99, 59)), {})
    assert carry_out(make_plan(["table/best.yaml"]), fakes.train, fakes.score) == []
    record = read_run(Path("runs/table/best-s0"))
    assert (record.winner["name"], record.winner["by"], len(record.of)) == ("b-s0", "test", 4)
    assert record.config.replicas == (("hflip", "vflip"),)


def test_other_nodes_leave_the_makings_to_the_first(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    fakes, plan = Fakes({}, {}), make_plan(["table"])
    assert carry_out(plan, fakes.train, fakes.score) == []
    assert len(fakes.trained) == 4
    assert fakes.scored == []
    show_results(plan)
    assert capsys.readouterr().out == ""
