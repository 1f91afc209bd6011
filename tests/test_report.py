"""The table and the curves hold the numbers of the run folders, which are written here by hand."""

from __future__ import annotations

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

from lookaround_ddp.cli import main
from lookaround_ddp.config import UserError
from lookaround_ddp.report.curves import draw_curves
from lookaround_ddp.report.runs import Group, grouped, read_run, shipped
from lookaround_ddp.report.table import results_table, show

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


def groups(*runs: Path) -> list[Group]:
    return grouped([read_run(run) for run in runs])


def rows(capsys: pytest.CaptureFixture[str], *runs: Path, brief: bool = False) -> list[list[str]]:
    """The cells below the heading, as a reader of Markdown splits them."""
    show(results_table(groups(*runs), brief))
    return markdown(capsys.readouterr().out)[2:]


def markdown(text: str) -> list[list[str]]:
    lines = text.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, *runs: Path) -> list[Axes]:
    """The axes of loss and accuracy, as they were when the file was written."""
    figures, save = [], Figure.savefig

    def kept(self: Figure, *args: Any, **kwargs: Any) -> None:
        save(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a user would see it
        draw_curves(groups(*runs), path)
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


HEADING = ["network", "top-1 %", "top-5 %", "NLL", "n", "seconds"]


def test_table_of_a_run_and_its_baseline(lookaround: Path, single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run is judged by is bold, and has its seconds."""
    assert rows(capsys, lookaround, single) == [
        [f"`{LOOKAROUND}`", "", "", "", "", ""],
        ["replica 0: crop", "93.85", "99.70", "1.0000", "1", ""],
        ["replica 1: rotation", "95.24", "99.87", "0.1685", "1", ""],
        ["replica 2: perspective", "98.10", "-", "1.0000", "1", ""],
        ["**mean model**", "**96.49**", "**99.75**", "**0.1235**", "**1**", "**42**"],
        [f"`{SINGLE}`", "", "", "", "", ""],
        [
            "**single network: crop, rotation, perspective**",
            *("**95.10**", "**99.40**", "**1.0000**", "**1**", "**1234**"),
        ],
        ["best epoch, 15, by test set", "95.60", "99.50", "0.2000", "1", ""],
    ]
    assert rows(capsys, lookaround, single, brief=True) == [
        [f"`{LOOKAROUND}`: mean model", "96.49", "99.75", "0.1235", "1", "42"],
        [f"`{SINGLE}`: single network", "95.10", "99.40", "1.0000", "1", "1234"],
    ]


def test_seeds_are_one_row_with_their_mean_and_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """90, 92 and 97: mean 93, deviations -3, -1 and 4, standard error sqrt(26 / 2 / 3) = 2.0817. Others stay apart."""
    for seed, top1 in enumerate((90, 92, 97)):
        run = write_run(tmp_path / f"sgdm-s{seed}", ONE, mean=score(top1, nll=0.5), seconds=10 * seed)
        (run / "config.yaml").write_text(f"out: elsewhere\nreplicas: {ONE}\nseed: {seed}\n")
    other = write_run(tmp_path / "sgdm-s9", ONE, mean=score(50), seconds=1)
    (other / "config.yaml").write_text(f"replicas: {ONE}\nseed: 9\nepochs: 21\n")
    begun = write_run(tmp_path / "sgdm-s3", ONE)
    (begun / "config.yaml").write_text(f"replicas: {ONE}\nseed: 3\n")
    assert rows(capsys, *sorted(tmp_path.glob("sgdm-s*")), brief=True) == [
        ["`sgdm`: single network", "93.00 ± 2.08", "-", "0.5000 ± 0.0000", "3", "10"],
        ["`sgdm-s3`: not finished", *"-----"],
        ["`sgdm-s9`: single network", "50.00", "-", "1.0000", "1", "1"],
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a-s1", "a-s2"], "a"),
        (["a-s10", "a-s11"], "a"),
        (["resnet8-seed=0", "resnet8-seed=1"], "resnet8"),
        (["resnet8", "resnet8b"], "resnet8"),
        (["one", "two"], "one"),
        (["0", "1"], "0"),
    ],
)
def test_the_name_of_a_group(tmp_path: Path, names: list[str], expected: str) -> None:
    for seed, name in enumerate(names):
        (write_run(tmp_path / name, ONE) / "config.yaml").write_text(f"seed: {seed}\n")
    (group,) = groups(*(tmp_path / name for name in names))
    assert (group.name, [run.name for run in group.runs]) == (expected, names)


def test_table_of_an_ensemble_and_of_averages_along_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = [score(50, 90), score(60, 91), score(70, 92)]
    own = "[[crop+hflip], [{rotation: {degrees: 30}}], [none]]"
    mixed = {"logits": score(75, 95), "probabilities": score(74, 94)}
    ensemble = write_run(tmp_path / "ensemble", own, replicas=scores, ensemble=mixed, seconds=7)
    swa = write_run(tmp_path / "swa", "[[hflip]]", mean=score(40, 80), trajectory=score(55.5, 80), seconds=3)
    for run, line in ((ensemble, "average: {k: never}"), (swa, "trajectory: {name: swa}")):
        with (run / "config.yaml").open("a") as file:
            file.write(line)
    assert rows(capsys, ensemble, swa) == [
        ["`ensemble`", "", "", "", "", ""],
        ["replica 0: crop+hflip", "50.00", "90.00", "1.0000", "1", ""],
        ["replica 1: rotation", "60.00", "91.00", "1.0000", "1", ""],
        ["replica 2: none", "70.00", "92.00", "1.0000", "1", ""],
        ["**ensemble, mean of logits**", "**75.00**", "**95.00**", "**1.0000**", "**1**", "**7**"],
        ["ensemble, mean of probabilities", "74.00", "94.00", "1.0000", "1", ""],
        ["`swa`", "", "", "", "", ""],
        ["single network: hflip", "40.00", "80.00", "1.0000", "1", ""],
        ["**average along time (swa)**", "**55.50**", "**80.00**", "**1.0000**", "**1**", "**3**"],
    ]


def test_a_run_that_has_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line may be half written. There may be no evaluation yet, or no line at all."""
    run = write_run(tmp_path / "begun", THREE, [training(1, 2.5, 2.25, 2.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 16, "epo')
    fresh = write_run(tmp_path / "fresh", THREE)
    (fresh / "metrics.jsonl").unlink()
    assert [shipped(each) for group in groups(run, fresh) for each in group.runs] == [None, None]
    assert rows(capsys, run) + rows(capsys, fresh) == [
        ["`begun`: not finished", *"-----"],
        ["`fresh`: not finished", *"-----"],
    ]
    loss, accuracy = drawn(monkeypatch, tmp_path / "curves.png", run)
    names = ["replica 0: crop", "replica 1: rotation", "replica 2: perspective"]
    assert curves(loss) == dict(zip(names, ([(1, 2.5)], [(1, 2.25)], [(1, 2.0)]), strict=True))
    assert curves(accuracy) == {}


@pytest.mark.parametrize("name", ["2024", "[k=5]", "a[bold]", "a|b"])
def test_any_folder_name_is_shown_as_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / name, ONE, mean=score(90, 99), seconds=1)
    monkeypatch.chdir(tmp_path)
    assert rows(capsys, Path(name))[0][0].replace("\\|", "|") == f"`{name}`"


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


def test_of_seeds_the_mean_and_their_band_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracies 40 and 60 at epoch 10, 70 and 80 at 20; one of them alone has epoch 15. A star ends in an average."""
    for seed, tops in enumerate(((40, 70), (60, 80))):
        lines = [training(10, 2 - seed), evaluation(10, mean=score(tops[0])), evaluation(20, mean=score(tops[1]))]
        lines += [evaluation(15, mean=score(1))] if seed else []
        final = {"mean": score(tops[1]), "trajectory": score(90 + seed)}
        run = write_run(tmp_path / f"swa-s{seed}", ONE, lines, **final, seconds=1)
        (run / "config.yaml").write_text(f"replicas: {ONE}\nseed: {seed}\ntrajectory: {{name: swa}}\n")
    loss, accuracy = drawn(monkeypatch, tmp_path / "c.png", *tmp_path.glob("swa-s*"))
    assert curves(loss) == {"single network: crop, rotation, perspective": [(10, 1.5)]}
    assert curves(accuracy) == {"single network": [(10, 50), (20, 75)], "average along time (swa)": [(20, 90.5)]}
    (band,) = accuracy.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(10, 40), (10, 60), (20, 70), (20, 80)}


def test_of_many_groups_what_they_are_judged_by_is_drawn(
    lookaround: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over the replicas. The legend is beside the axes."""
    mixed = {"logits": score(75, 95), "probabilities": score(74, 94)}
    lines = [training(20, 1, 2, 6), evaluation(20, replicas=[score(50)] * 3, ensemble=mixed)]
    run = write_run(tmp_path / "ensemble", THREE, lines, replicas=[score(50)] * 3, ensemble=mixed, seconds=7)
    (run / "config.yaml").write_text(f"replicas: {THREE}\naverage: {{k: never}}\n")
    loss, accuracy = drawn(monkeypatch, tmp_path / "c.png", lookaround, single, run)
    points = [[line.get_label(), *map(tuple, line.get_xydata())] for line in (*loss.lines, *accuracy.lines)]
    assert points == [
        [LOOKAROUND, (6.25, 1.5), (12.5, 0.5)],
        [SINGLE, (20, 0.0625)],
        ["ensemble", (20, 3)],
        [LOOKAROUND, (10, 88.5), (20, 96.487)],
        [SINGLE, (15, 95.6), (20, 95.1)],
        ["ensemble", (20, 75)],
    ]


def test_report_prints_the_table_and_draws(
    lookaround: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a narrow terminal, too, each row is one line."""
    monkeypatch.setenv("COLUMNS", "40")
    main(["report", str(lookaround), str(single), "--curves", str(tmp_path / "both.png")])
    printed = markdown(capsys.readouterr().out)
    assert printed[0] == HEADING
    assert set("".join(printed[1])) == {"-"}
    assert printed[2:] == rows(capsys, lookaround, single)
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    main(["report", "--brief", str(lookaround)])
    assert markdown(capsys.readouterr().out)[2:] == rows(capsys, lookaround, brief=True)


def test_what_cannot_be_reported(lookaround: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        said = mistake(capsys, "report", str(lookaround), str(folder))
        assert said == f"error: {folder} is not a run folder: there is no config.yaml in it\n"
    for path, reason in ((tmp_path / "no" / "c.png", "No such file"), (tmp_path / "c.foo", "Format 'foo' is not")):
        pattern = f"error: curves cannot be drawn into {path}: .*{reason}.*\n"
        assert re.fullmatch(pattern, mistake(capsys, "report", str(lookaround), "--curves", str(path)))
