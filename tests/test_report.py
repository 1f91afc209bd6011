"""The table and the curves hold the numbers of the run folders, which are written here by hand."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from lookaround_ddp.cli import main
from lookaround_ddp.config import UserError
from lookaround_ddp.report.curves import draw_curves
from lookaround_ddp.report.runs import read_run
from lookaround_ddp.report.table import results_table

LOOKAROUND, SINGLE = "quickstart-lookaround", "quickstart-single"  # as launch/quickstart.sh names them
THREE, ONE = "[[crop], [rotation], [perspective]]", "[[crop, rotation, perspective]]"


def score(top1: float, top5: float | None = None, nll: float = 1.0) -> dict[str, float]:
    return {"top1": top1, "nll": nll} if top5 is None else {"top1": top1, "top5": top5, "nll": nll}


def training(epoch: float, *losses: float) -> dict[str, Any]:
    return {"iteration": int(8 * epoch), "epoch": epoch, "lr": 0.1, "loss": list(losses), "distance": None}


def evaluation(epoch: float, **scores: Any) -> dict[str, Any]:
    return {"iteration": int(8 * epoch), "epoch": epoch, **scores}


def write_run(folder: Path, own: str, lines: Sequence[Any] = (), **result: Any) -> Path:
    """A run folder of 20 epochs of 8 iterations; without `result` the run has not finished."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"out: elsewhere\nreplicas: {own}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        (folder / "result.json").write_text(json.dumps({"best": None, "iterations": 160, "epochs": 20, **result}))
    return folder


@pytest.fixture
def lookaround(tmp_path: Path) -> Path:
    replicas = [[score(30), score(41.5), score(52)], [score(93.851, 99.7), score(95.239, 99.874, 0.16854), score(98.1)]]
    lines = [
        training(6.25, 1.5, 1.25, 1.75),
        evaluation(10, mean=score(88.5, 99, 0.5), replicas=replicas[0]),
        training(12.5, 0.5, 0.25, 0.75),
        evaluation(20, mean=score(96.487, 99.749, 0.12345), replicas=replicas[1]),
    ]
    best = {"iteration": 160, "epoch": 20.0, "selected_by": "test", "selected_top1": 96.487, "mean": lines[-1]["mean"]}
    result = {"mean": lines[-1]["mean"], "replicas": replicas[1], "best": best, "seconds": 41.7}
    return write_run(tmp_path / LOOKAROUND, THREE, lines, **result)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    lines = [training(20, 0.0625), evaluation(15, mean=score(95.6, 99.5, 0.2)), evaluation(20, mean=score(95.1, 99.4))]
    best = {"iteration": 120, "epoch": 15.0, "selected_by": "test", "selected_top1": 95.6, "mean": lines[1]["mean"]}
    return write_run(tmp_path / SINGLE, ONE, lines, mean=lines[2]["mean"], best=best, seconds=1234.4)


def rendered(*runs: Path, width: int = 100) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(results_table([read_run(run) for run in runs]))
    return file.getvalue().splitlines()


def rows(*runs: Path, width: int = 100) -> list[list[str]]:
    """The cells below the heading."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in rendered(*runs, width=width) if line[0] == "│"]


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, *runs: Path) -> list[Axes]:
    """The axes of loss and accuracy, as they were when the file was written."""
    figures, save = [], Figure.savefig

    def kept(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see it
        draw_curves([read_run(run) for run in runs], path)
    return figures[0].axes


def curves(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Name in the legend -> points."""
    legend = axes.get_legend()
    names = [] if legend is None else [entry.get_text() for entry in legend.get_texts()]
    assert names == [str(line.get_label()) for line in axes.lines]
    return {name: [(x, y) for x, y in line.get_xydata()] for name, line in zip(names, axes.lines, strict=True)}


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says of a user's mistake, in a line."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    return said.err


def test_table_of_a_run_and_its_baseline(lookaround: Path, single: Path) -> None:
    assert rows(lookaround, single) == [
        [LOOKAROUND, "", "", "", ""],
        ["replica 0: crop", "93.85", "99.70", "1.0000", ""],
        ["replica 1: rotation", "95.24", "99.87", "0.1685", ""],
        ["replica 2: perspective", "98.10", "-", "1.0000", ""],
        ["mean model", "96.49", "99.75", "0.1235", "42"],
        [SINGLE, "", "", "", ""],
        ["single network: crop, rotation, perspective", "95.10", "99.40", "1.0000", "1234"],
        ["best epoch, 15, by test set", "95.60", "99.50", "0.2000", ""],
    ]
    title, _, heading = rendered(lookaround, single)[:3]
    assert title.strip() == "Test set, last epoch"
    assert [each.strip() for each in heading.split("┃")[1:-1]] == ["network", "top-1 %", "top-5 %", "NLL", "seconds"]


def test_table_fits_in_80_columns(lookaround: Path, single: Path) -> None:
    """One name needs a second line; every figure is whole, on its row's first line."""
    lines = rendered(lookaround, single, width=80)
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    narrow = rows(lookaround, single, width=80)
    assert narrow.pop(7) == ["perspective", "", "", "", ""]
    assert any(line.startswith("│   perspective ") for line in lines)  # below its name, not below the run's
    narrow[6][0] += " perspective"
    assert narrow == rows(lookaround, single)


def test_table_of_replicas_that_were_never_averaged(tmp_path: Path) -> None:
    """There is no mean model: the last row of a run has its seconds."""
    scores = [score(50, 90), score(60, 91), score(70, 92)]
    own = "[[crop+hflip], [{rotation: {degrees: 30}}], [none]]"
    ensemble = write_run(tmp_path / "ensemble", own, replicas=scores, seconds=7)
    alone = write_run(tmp_path / "alone", "[[hflip]]", replicas=[score(55.5, 80)], seconds=3)
    assert rows(ensemble, alone) == [
        ["ensemble", "", "", "", ""],
        ["replica 0: crop+hflip", "50.00", "90.00", "1.0000", ""],
        ["replica 1: rotation", "60.00", "91.00", "1.0000", ""],
        ["replica 2: none", "70.00", "92.00", "1.0000", "7"],
        ["alone", "", "", "", ""],
        ["single network: hflip", "55.50", "80.00", "1.0000", "3"],
    ]


def test_a_run_that_has_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line may be half written. There may be no evaluation yet, or no line at all."""
    run = write_run(tmp_path / "begun", THREE, [training(1, 2.5, 2.25, 2.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 16, "epo')
    fresh = write_run(tmp_path / "fresh", THREE)
    (fresh / "metrics.jsonl").unlink()
    assert rows(run, fresh) == [["begun: not finished", *"----"], ["fresh: not finished", *"----"]]
    loss, accuracy = drawn(monkeypatch, tmp_path / "curves.png", run)
    names = ["replica 0: crop", "replica 1: rotation", "replica 2: perspective"]
    assert curves(loss) == dict(zip(names, ([(1, 2.5)], [(1, 2.25)], [(1, 2.0)]), strict=True))
    assert curves(accuracy) == {}


@pytest.mark.parametrize("name", ["2024", "[k=5]", "a[bold]"])
def test_any_folder_name_is_shown_as_it_is(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / name, ONE, mean=score(90, 99), seconds=1)
    monkeypatch.chdir(tmp_path)
    assert rows(Path(name))[0] == [name, "", "", "", ""]


DAMAGE = ['metrics.jsonl:{"loss": [1\n{"loss": [2]}\n', 'result.json:{"mean": 9', "result.json:\udcff"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record(lookaround: Path, damage: str) -> None:
    file, _, content = damage.partition(":")
    (lookaround / file).write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=f"^the record in .*{LOOKAROUND} is damaged: [^\n]+$"):
        read_run(lookaround)


def test_curves_hold_the_lines_of_two_runs(
    lookaround: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curves.png"
    loss, accuracy = drawn(monkeypatch, path, lookaround, single)
    names = [f"{LOOKAROUND}: replica {j}: {own}" for j, own in enumerate(("crop", "rotation", "perspective"))]
    assert curves(loss) == {
        names[0]: [(6.25, 1.5), (12.5, 0.5)],
        names[1]: [(6.25, 1.25), (12.5, 0.25)],
        names[2]: [(6.25, 1.75), (12.5, 0.75)],
        f"{SINGLE}: single network: crop, rotation, perspective": [(20, 0.0625)],
    }
    assert curves(accuracy) == {
        names[0]: [(10, 30), (20, 93.851)],
        names[1]: [(10, 41.5), (20, 95.239)],
        names[2]: [(10, 52), (20, 98.1)],
        f"{LOOKAROUND}: mean model": [(10, 88.5), (20, 96.487)],
        f"{SINGLE}: single network": [(15, 95.6), (20, 95.1)],
    }
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "training loss (cross-entropy)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "top-1 (%)")
    assert (loss.get_title(), accuracy.get_title()) == ("training loss", "test accuracy")
    assert [line.get_linestyle() for line in loss.lines] == ["-", "-", "-", "--"]  # the second run's are dashed
    colors = [line.get_color() for line in accuracy.lines]
    assert colors[:3] == [line.get_color() for line in loss.lines[:3]]  # a replica has one in both
    assert len(set(colors)) == 5
    assert accuracy.get_ylim()[1] > 98.1  # replicas above the mean are not cut off
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (1320, 504))


def test_one_run_needs_no_name_in_its_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a single network that was never averaged has its accuracy drawn, which is its replica's."""
    lines = [training(10, 0.5), evaluation(10, replicas=[score(40)]), evaluation(20, replicas=[score(60)])]
    run = write_run(tmp_path / "alone", ONE, lines, replicas=[score(60)], seconds=1)
    loss, accuracy = drawn(monkeypatch, tmp_path / "curves.png", run)
    assert curves(loss) == {"single network: crop, rotation, perspective": [(10, 0.5)]}
    assert curves(accuracy) == {"single network": [(10, 40), (20, 60)]}


def test_report_prints_the_table_and_draws(
    lookaround: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["report", str(lookaround), str(single), "--curves", str(tmp_path / "both.png")])
    assert capsys.readouterr().out.splitlines() == rendered(lookaround, single, width=80)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_reported(lookaround: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        said = mistake(capsys, "report", str(lookaround), str(folder))
        assert said == f"error: {folder} is not a run folder: there is no config.yaml in it\n"
    for path, reason in ((tmp_path / "no" / "c.png", "No such file"), (tmp_path / "c.foo", "Format 'foo' is not")):
        pattern = f"error: curves cannot be drawn into {path}: .*{reason}.*\n"
        assert re.fullmatch(pattern, mistake(capsys, "report", str(lookaround), "--curves", str(path)))
