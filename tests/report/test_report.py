"""The tables hold the numbers of the run folders, which are written by hand."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from lookaround_ddp.cli import main
from lookaround_ddp.errors import UserError
from lookaround_ddp.report.runs import judged_score, read_run
from lookaround_ddp.report.table import results_table, show
from tests.support.records import LOOKAROUND, ONE, SINGLE, THREE, begun, groups, score, write_run


def rows(capsys: pytest.CaptureFixture[str], *runs: Path, brief: bool = False) -> list[list[str]]:
    """The cells below the heading, as a reader of Markdown splits them."""
    show(results_table(groups(*runs), brief))
    return markdown(capsys.readouterr().out)[2:]


def markdown(text: str) -> list[list[str]]:
    lines = text.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


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
        ["**mean model**", "**96.49**", "**99.75**", "**0.1235**", "**1**", "**42 (training alone)**"],
        [f"`{SINGLE}`", "", "", "", "", ""],
        [
            "**single network: crop, rotation, perspective**",
            *("**95.10**", "**99.40**", "**1.0000**", "**1**", "**1234 (training alone)**"),
        ],
        ["best epoch, 15, by test set", "95.60", "99.50", "0.2000", "1", ""],
    ]
    assert rows(capsys, lookaround, single, brief=True) == [
        [f"`{LOOKAROUND}`: mean model", "96.49", "99.75", "0.1235", "1", "42 (training alone)"],
        [f"`{SINGLE}`: single network", "95.10", "99.40", "1.0000", "1", "1234 (training alone)"],
    ]


def test_seeds_are_one_row_with_their_mean_and_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """90, 92 and 97: mean 93, deviations -3, -1 and 4, standard error sqrt(26 / 2 / 3) = 2.0817. Others stay apart."""
    for seed, top1 in enumerate((90, 92, 97)):
        run = write_run(
            tmp_path / f"sgdm-s{seed}", ONE, mean=score(top1, nll=0.5), seconds=10 * seed, total_seconds=19 + seed
        )
        (run / "config.yaml").write_text(f"out: elsewhere\nreplicas: {ONE}\nseed: {seed}\n")
    other = write_run(tmp_path / "sgdm-s9", ONE, mean=score(50), seconds=1)
    (other / "config.yaml").write_text(f"replicas: {ONE}\nseed: 9\nepochs: 21\n")
    begun = write_run(tmp_path / "sgdm-s3", ONE)
    (begun / "config.yaml").write_text(f"replicas: {ONE}\nseed: 3\n")
    assert rows(capsys, *sorted(tmp_path.glob("sgdm-s*")), brief=True) == [
        ["`sgdm`: single network", "93.00 ± 2.08", "-", "0.5000 ± 0.0000", "3", "20"],
        ["`sgdm-s3`: not finished", *"-----"],
        ["`sgdm-s9`: single network", "50.00", "-", "1.0000", "1", "1 (training alone)"],
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
        ["**ensemble, mean of logits**", "**75.00**", "**95.00**", "**1.0000**", "**1**", "**7 (training alone)**"],
        ["ensemble, mean of probabilities", "74.00", "94.00", "1.0000", "1", ""],
        ["`swa`", "", "", "", "", ""],
        ["single network: hflip", "40.00", "80.00", "1.0000", "1", ""],
        ["**average along time (swa)**", "**55.50**", "**80.00**", "**1.0000**", "**1**", "**3 (training alone)**"],
    ]


def test_a_run_that_has_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last line may be half written; there may be no line at all."""
    run, fresh = begun(tmp_path / "begun"), write_run(tmp_path / "fresh", THREE)
    (fresh / "metrics.jsonl").unlink()
    assert [judged_score(each) for group in groups(run, fresh) for each in group.runs] == [None, None]
    assert rows(capsys, run) + rows(capsys, fresh) == [
        ["`begun`: not finished", *"-----"],
        ["`fresh`: not finished", *"-----"],
    ]


@pytest.mark.parametrize("name", ["2024", "[k=5]", "a[bold]", "a|b"])
def test_any_folder_name_is_shown_as_it_is(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / name, ONE, mean=score(90, 99), seconds=1)
    monkeypatch.chdir(tmp_path)
    assert rows(capsys, Path(name))[0][0].replace("\\|", "|") == f"`{name}`"


DAMAGE = ['metrics.jsonl:{"loss": [1\n{"loss": [2]}\n', 'result.json:{"mean": 9', "result.json:\udcff"]
DAMAGE += ["result.json:[]", "result.json:{}"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record(lookaround: Path, damage: str) -> None:
    file, _, content = damage.partition(":")
    (lookaround / file).write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=rf"^(the record in )?/.*{LOOKAROUND}(/result.json)? is damaged\W[^\n]+$"):
        read_run(lookaround)


def test_a_soup_is_no_seed_of_its_first_ingredient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", ONE, mean=score(70), seconds=5)
    soup = write_run(tmp_path / "mixed", ONE, mean=score(80), soup=["a", "b"], seconds=0)
    assert [row[:2] for row in rows(capsys, run, soup, brief=True)] == [
        ["`a`: single network", "70.00"],
        ["`mixed`: soup of 2", "80.00"],
    ]
    assert rows(capsys, soup)[1][0] == "**soup of 2**"


def test_a_run_that_is_named_twice_counts_once(
    single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the table is Markdown where colours are forced on."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["report", "--brief", str(single), str(single / ".." / SINGLE)])
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert [row[4] for row in markdown(said)[2:]] == ["1"]


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
    main(["report", str(lookaround), "--brief", str(single)])
    assert markdown(capsys.readouterr().out)[2:] == rows(capsys, lookaround, single, brief=True)
    with pytest.raises(SystemExit):
        main(["report", str(lookaround), "--breif"])
    assert "unrecognized arguments: --breif" in capsys.readouterr().err


def test_folders_of_runs(lookaround: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder stands for the runs in it, each once; what is no run is left out, with a word."""
    table = tmp_path / "runs" / "paper" / "cifar"
    table.mkdir(parents=True)
    lookaround.rename(table / "lookaround")
    single.rename(tmp_path / "runs" / "single")
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "refused").mkdir()
    both = rows(capsys, table / "lookaround", tmp_path / "runs" / "single")
    main(["report", str(tmp_path / "runs")])
    assert markdown(capsys.readouterr().out)[2:] == both
    named = sorted((tmp_path / "runs").iterdir())
    main(["report", *map(str, named)])
    said = capsys.readouterr()
    assert markdown(said.out)[2:] == both
    assert said.err == "".join(
        f"{tmp_path}/runs/{name}: left out, since there is no run in it\n" for name in ("notes.txt", "refused")
    )


def test_what_cannot_be_reported(lookaround: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    nowhere = tmp_path / "nowhere"
    for others, folder in (((str(lookaround),), nowhere), ((), nowhere), ((), tmp_path / "empty")):
        said = mistake(capsys, "report", *others, str(folder))
        assert said.endswith(f"error: {folder} is not a run folder: there is no config.yaml in it\n")
    assert "name at least one run's folder" in mistake(capsys, "report")
    assert "name at least one run's folder" in mistake(capsys, "report", "--table", "1", "--curves", "c.png")
    for path, reason in ((tmp_path / "no" / "c.png", "No such file"), (tmp_path / "c.foo", "Format 'foo' is not")):
        pattern = f"error: curves cannot be drawn into {path}: .*{reason}.*\n"
        assert re.fullmatch(pattern, mistake(capsys, "report", str(lookaround), "--curves", str(path)))


def test_scores_as_csv(lookaround: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(lookaround), str(single), "--csv", str(tmp_path / "all.csv")])
    with (tmp_path / "all.csv").open() as file:
        head, *lines = csv.reader(file)
    assert head == [
        *("group", "run", "seed", "network", "judged", "top1", "top5", "nll"),
        *("iterations", "epochs", "seconds", "total_seconds"),
    ]
    end, slow = (["160", "20", seconds, ""] for seconds in ("41.7", "1234.4"))
    assert lines == [
        [LOOKAROUND, LOOKAROUND, "0", "replica 0: crop", "0", "93.851", "99.7", "1.0", *end],
        [LOOKAROUND, LOOKAROUND, "0", "replica 1: rotation", "0", "95.239", "99.874", "0.16854", *end],
        [LOOKAROUND, LOOKAROUND, "0", "replica 2: perspective", "0", "98.1", "", "1.0", *end],
        [LOOKAROUND, LOOKAROUND, "0", "mean model", "1", "96.487", "99.749", "0.12345", *end],
        [SINGLE, SINGLE, "0", "single network: crop, rotation, perspective", "1", "95.1", "99.4", "1.0", *slow],
        [SINGLE, SINGLE, "0", "best epoch, 15, by test set", "0", "95.6", "99.5", "0.2", *slow],
    ]
    capsys.readouterr()
    said = mistake(capsys, "report", str(single), "--csv", str(tmp_path / "no" / "all.csv"))
    assert said == f"error: {tmp_path}/no/all.csv cannot be written: No such file or directory\n"
