"""The paper's tables beside runs: runs are written by hand, of the configs in the clone and of a small folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.checkpoint import save_made
from lookaround_ddp.cli import main
from lookaround_ddp.config import Config, Recipe, Sweep, load_cell, load_config
from lookaround_ddp.report.cells import CONFIGS, Cell, read_cells
from lookaround_ddp.report.paper import paper_page
from lookaround_ddp.report.runs import RunRecord, held_out
from tests.report.test_report import markdown
from tests.support.records import finished_run, groups, score
from tests.support.runs import ROOT

NAMES = ["CIFAR-10", "ResNet-50"]
CELLS = [  # of the clone's configs
    Cell("cifar", "1", *NAMES, "Lookaround", "cifar10-resnet50-lookaround", {"top1": "96.60", "nll": "0.260"}),
    Cell("cifar", "1", *NAMES, "SGDM", "cifar10-resnet50-sgdm", {"top1": "95.00"}),
    Cell("cifar", "", *NAMES, "SAM", "cifar10-resnet50-sam", {}),
    Cell("ablation", "6", *NAMES, "both", "cifar10-resnet50-both", {"top1": "96.59"}),
    Cell("k", "", "CIFAR-100", "ResNet-50", "k = 1", "cifar100-resnet50-k1", {}),
]


FOUND = score(50.0, 99.0, 0.25)


def cell(name: str, **changed: object) -> Config:
    return load_config(ROOT / CONFIGS / f"{name}.yaml").model_copy(update={"precision": "bf16", **changed})


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookaround_ddp.report.cells.read_cells", lambda: CELLS)
    monkeypatch.setattr("lookaround_ddp.report.paper.read_cells", lambda: CELLS)
    monkeypatch.chdir(ROOT)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two seeds of a cell, and what is none."""
    name = "cifar/cifar10-resnet50-lookaround"
    found = [
        finished_run(tmp_path / f"s{seed}", cell(name, seed=seed), FOUND | {"top1": 96.0 + seed}) for seed in (0, 1)
    ]
    found.append(finished_run(tmp_path / "short", cell(name, epochs=100), FOUND))
    found.append(finished_run(tmp_path / "twin", cell(name, precision="fp32"), FOUND))
    found.append(finished_run(tmp_path / "mixed", cell(name), FOUND, soup=["s0", "s1"]))
    return found


@pytest.mark.usefixtures("clone")
def test_a_table_beside_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """96 and 97: 96.5 +- 0.5, which is 0.1 below 96.60. Figures are as printed; the paper gives no top-5 for it."""
    metrics = ["top-1 %", "top-5 %", "NLL"]
    heading = [
        "dataset",
        "network",
        "method",
        *(f"{each} {side}" for each in metrics for side in ("published", "here")),
    ]
    ours = ["96.60", "96.50 ± 0.50 (-0.10)", "-", "99.00 ± 0.00", "0.260", "0.2500 ± 0.0000 (-0.0100)", "2"]
    for name, others in (("1", []), ("cifar", [[*NAMES, "SAM", *["-"] * 7]])):
        main(["report", "--table", name, *map(str, runs)])
        table, strangers = capsys.readouterr().out.split("\n\n")
        rows = markdown(table)
        assert rows[0] == [*heading, "n"]
        assert rows[2:] == [[*NAMES, "Lookaround", *ours], [*NAMES, "SGDM", "95.00", *["-"] * 6], *others]
        assert strangers.splitlines() == [
            "- short: no cell, cifar/cifar10-resnet50-lookaround has epochs: 200 -> 100",
            "- twin: left out, since cifar/cifar10-resnet50-lookaround has runs already that were computed otherwise",
            "- mixed: no cell, but a soup",
        ]


@pytest.mark.usefixtures("clone")
def test_runs_that_measured_batch_norm_otherwise_are_another_group(tmp_path: Path) -> None:
    """The mean of theirs and a cell's would be of two things, and so would their standard error."""
    own = cell("cifar/cifar10-resnet50-lookaround")
    anew = own.model_copy(update={"evaluate": own.evaluate.model_copy(update={"recalibrate": True})})
    runs = [finished_run(tmp_path / name, config, FOUND) for name, config in (("plain", own), ("anew", anew))]
    assert [[run.name for run in group.runs] for group in groups(*runs)] == [["plain"], ["anew"]]
    assert "- anew: no cell, cifar/cifar10-resnet50-lookaround has evaluate: None -> " in paper_page("1", groups(*runs))


@pytest.mark.usefixtures("clone")
def test_all_tables_are_one_page(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A run counts in each table that has it; what a table has no figure and no run for is no column of it."""
    main(["report", "--table", "all", str(runs[0]), str(runs[2])])
    title, *blocks = capsys.readouterr().out.strip().split("\n\n")
    assert title.startswith("# The tables of ")
    assert blocks[0].startswith("`here` is the mean")
    assert blocks[1::2] == [
        "## Table 1: CIFAR-10 and CIFAR-100, from scratch",
        "## Table 6: ablation: data augmentation (DA) and weight averaging (WA)",
        "## Not in the paper: cifar",
        "## Not in the paper: k",
        "## Runs that are no cells",
    ]
    tables = [markdown(block) for block in blocks[2:-2:2]]
    assert [row[2] for row in tables[0]][2:] == ["Lookaround", "SGDM"]
    assert tables[1][2][:5] == [*NAMES, "both", "96.59", "96.00 (-0.59)"]
    for table, method in ((tables[2], "SAM"), (tables[3], "k = 1")):
        assert table[0] == ["dataset", "network", "method", "top-1 % published", "top-1 % here", "n"]
        assert [row[2:] for row in table[2:]] == [[method, "-", "-", "-"]]
    assert blocks[-1].startswith("- short: no cell, ")


def test_tables_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name, expected in (
        (ROOT, "", "there is no table ''"),
        (ROOT, "99", "there is no table '99': known are 1, "),
        (ROOT, "99", ", imagenet, "),
        (tmp_path, "1", f"the configs of table 1 are not in {tmp_path}/configs/paper: run this in"),
        (tmp_path, "all", f"are not in {tmp_path}/configs/paper: run this in"),
    ):
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main(["report", "--table", name])
        assert ended.value.code == 2
        assert expected in capsys.readouterr().err


def test_the_clones_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of published.csv is one of the page."""
    monkeypatch.chdir(ROOT)
    blocks = paper_page("all", []).split("\n\n")
    rows = [row[:3] for block in blocks if block.startswith("|") for row in markdown(block)[2:]]
    assert sorted(rows) == sorted([each.dataset, each.network, each.method] for each in read_cells())


MADE = [
    Cell("own", "", "digits", "ResNet-8", "grid", "grid", {"top1": "80"}),
    Cell("own", "", "digits", "ResNet-8", "soup", "soup", {"top1": "81.5"}),
    Cell("own", "", "digits", "ResNet-8", "ensemble", "ensemble", {}),
    Cell("own", "", "digits", "ResNet-8", "best", "best", {}),
    Cell("own", "", "digits", "ResNet-8", "theirs", "theirs", {"top1": "99.0"}),
]
FILES = {
    "a": "data: {validation: 50}\n",
    "grid": "base: a.yaml\nsweep: {optimizer.lr: [0.1, 0.01]}\n",
    "soup": "recipe: soup\nof: [a, grid]\nupdate_bn: true\n",
    "ensemble": "recipe: ensemble\nof: [a, grid]\n",
    "best": "recipe: best\nof: [grid]\nby: test\n",
    "theirs": "recipe: quoted\n",
}


def made(out: Path, how: dict[str, object], configs: list[Config], **result: object) -> Path:
    save_made(out, configs[0], how, [Path("run")] * len(configs), configs, result)
    return out


def test_what_was_made_of_runs_is_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs of the cells' configs, whatever their seeds; a soup by another recipe is none."""
    (tmp_path / "own").mkdir()
    for name, text in FILES.items():
        (tmp_path / "own" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr("lookaround_ddp.report.cells.read_cells", lambda: MADE)
    sweep = load_cell(tmp_path / "own" / "grid.yaml")
    assert isinstance(sweep, Sweep)
    all_configs = []
    for seed in (0, 1):
        points = [point.config.model_copy(update={"seed": seed}) for point in sweep.points]
        all_configs.append([load_config(tmp_path / "own" / "a.yaml").model_copy(update={"seed": seed}), *points])
    found = score(70.0, nll=0.5)
    winner = {"name": "optimizer.lr=0.01", "by": "held-out", "score": score(72.0)}
    soup = Recipe(recipe="soup", update_bn=True)
    shown = [
        made(tmp_path / "grid-s0", {"recipe": "sweep"}, all_configs[0][1:], mean=found, winner=winner),
        made(tmp_path / "soup-s0", soup.record(), all_configs[0], mean=found, soup=["a"]),
        made(tmp_path / "soup-s1", soup.record(), all_configs[1], mean=score(72.0, nll=0.5), soup=["b"]),
        made(tmp_path / "few", soup.record(50), all_configs[0], mean=found, soup=["a"]),
        made(tmp_path / "part", {"recipe": "sweep"}, all_configs[0][:1], mean=found, winner=winner),
        made(tmp_path / "all", {"recipe": "ensemble"}, all_configs[0], members=[found], ensemble={"logits": found}),
    ]
    table, notes, others = paper_page("own", groups(*shown), tmp_path).split("\n\n")
    heading, _, *rows = ([*row[2:]] for row in markdown(table))
    assert heading == ["method", "top-1 % published", "top-1 % here", "NLL published", "NLL here", "n"]
    assert rows == [
        ["grid", "80", "70.00 (-10.00)", "-", "0.5000", "1"],
        ["soup", "81.5", "71.00 ± 1.00 (-10.50)", "-", "0.5000 ± 0.0000", "2"],
        ["ensemble", "-", "70.00", "-", "0.5000", "1"],
        ["best", *["-"] * 5],
        ["theirs", "99.0", *["-"] * 4],
    ]
    assert notes == "- grid-s0: optimizer.lr=0.01 is the best of 2 by held-out images (top-1 72.00 there)"
    assert others.splitlines() == ["- few: no cell, but a soup", "- part: no cell, but the winner of a sweep"]


def test_the_score_on_held_out_images_is_of_what_is_shipped() -> None:
    own, logits = score(1), {"logits": score(3)}
    results = [
        ({"mean": own, "validation": {"top1": 2.0}}, 2.0),
        ({"mean": own, "validation": own, "trajectory": own, "trajectory_validation": {"top1": 4.0}}, 4.0),
        ({"replicas": [own], "ensemble": logits, "ensemble_validation": logits}, 3.0),
    ]
    for result, expected in results:
        found = held_out(RunRecord("run", Config(), [], result))
        assert found is not None
        assert found["top1"] == expected
    assert held_out(RunRecord("run", Config(), [], {"mean": own})) is None
    assert held_out(RunRecord("run", Config(), [], {"ensemble": logits, "validation": own})) is None
