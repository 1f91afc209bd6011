"""A run that somebody else may have made: what only reads it runs nothing that its config names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from lookaround_ddp.cli import main
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import read_classifier
from tests.support.own_code import HERE
from tests.support.runs import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose own code makes `mark` beside its folder; that of its training is gone."""
    out = tmp_path_factory.mktemp("strangers") / "run"
    mark = out.with_name("mark")
    own = f"replicas=[[{{tests.support.own_code.Marks: {{mark: {mark}}}}}], [crop]]"
    main(["train", f"out={out}", *TINY, own])
    mark.unlink()  # training is trusting
    return out


def said(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> str:
    if expect == 0:
        main(arguments)
    else:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == expect
    written = capsys.readouterr()
    return written.err if expect else written.out


def test_reading_a_run_runs_nothing_of_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark, name = run.with_name("mark"), str(run)
    for command in (
        ("report", name, "--curves", str(tmp_path / "curves.png")),
        ("evaluate", name, "evaluate.replicas=true"),
        ("ensemble", name, name),
        ("soup", name, "--recipe=uniform"),
        ("analyze", "sharpness", name, "--steps=1", "--directions=1", "--hessian-images=0", f"--out={tmp_path}/s"),
        ("processes", f"{name}/config.yaml"),
        ("processes", f"{name}/config.yaml", "data.pipeline=auto"),  # which looks at what the augmentations are
    ):
        said(capsys, *command)
        assert not mark.exists(), command
    refused = "Marks of the run is somebody's own code, and was not run: give --trust if you know whose it is"
    for command in (
        ("soup", name, "--recipe=uniform", "--update-bn"),
        ("analyze", "diversity", name, f"--out={tmp_path}/d"),
        ("analyze", "trajectory", name, f"--out={tmp_path}/t"),
        ("analyze", "plane", f"{name}/checkpoints/5", f"{name}/checkpoints/10", name, f"--out={tmp_path}/p"),
        ("analyze", "sharpness", name, "--recalibrate", f"--out={tmp_path}/s"),
    ):
        lines = said(capsys, *command, expect=2).splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: augmentation tests.support.own_code.Marks of the run")
        assert refused in lines[0]
        assert not mark.exists(), command


@pytest.mark.parametrize("command", [("soup", "--recipe=uniform", "--update-bn"), ("analyze", "diversity")])
def test_a_run_that_one_trusts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    out = [f"--out={tmp_path}/figure"] if command[0] == "analyze" else []
    said(capsys, *command, str(run), "--trust", *out)
    mark = run.with_name("mark")
    assert mark.exists()
    mark.unlink()


def test_a_known_class_needs_no_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision's transforms are nobody's own code; of what else its modules hold, nothing is run."""
    main(["train", f"out={tmp_path}/run", *TINY, "replicas=[[torchvision.transforms.RandomVerticalFlip]]"])
    said(capsys, "soup", f"{tmp_path}/run", "--recipe=uniform", "--update-bn")


def test_a_file_that_became_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its reader would wait for ever, and is not begun: that is said in a line."""
    run = tmp_path / "run"
    arguments = ("train", f"out={run}", *TINY, "data.validation=20", "checkpoint.keep=1")
    main(arguments)
    picture = tmp_path / "a.png"
    Image.new("L", (16, 16)).save(picture)
    read = [("report", str(run)), ("evaluate", str(run)), ("soup", str(run), "--recipe=uniform")]
    show = [("predict", str(run / "model.safetensors"), str(picture))]
    replicas = [("evaluate", str(run), "evaluate.replicas=true")]
    for path, commands in {
        run / "config.yaml": read,
        run / "result.json": [*read, arguments],
        run / "metrics.jsonl": read,
        run / "best.safetensors": read,
        run / "model.safetensors": [*read, *show],
        run / ".lock": [arguments],
        run / "checkpoints" / "10" / "run.json": replicas,
        run / "checkpoints" / "10" / "replica-2.pt": replicas,
    }.items():
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        for command in commands:
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                main(command)
            (*above, last) = "".join(capsys.readouterr()).splitlines()
            refused = [line for line in (*above, last) if f"{path}" in line and "was not opened" in line]
            assert (caught.value.code, len(refused)) == (2, 1), (path, command, above, last)
            assert last.startswith("error: ")
        path.unlink()
        path.write_bytes(kept)
    picture.unlink()
    os.mkfifo(picture)
    said(capsys, *show[0], expect=1)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network, data and a loss of somebody's own, which made `net` and `data` beside its folder."""
    out = tmp_path_factory.mktemp("strangers") / "own"
    main(["train", f"out={out}", *OWN, *marks(out)])
    assert all(mark.exists() for mark in (out.with_name("net"), out.with_name("data")))
    return out


OWN = (
    *("replicas=[[hflip],[none]]", "data.batch_size=8", "epochs=2", "average.k=2", "evaluate.every=2"),
    *(f"model.name={HERE}.Net", f"data.name={HERE}.named", f"loss={{{HERE}.margin: {{by: 2.0}}}}"),
)


def marks(out: Path) -> list[str]:
    return [f"model.options={{hidden: 4, mark: {out.parent}/net}}", f"data.options={{mark: {out.parent}/data}}"]


def test_what_reads_a_run_of_an_own_network(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of it is imported before one says that it may be; `report` and the preflight need none of it."""
    net, data = own.with_name("net"), own.with_name("data")
    net.unlink(missing_ok=True)
    data.unlink(missing_ok=True)
    name, figure = str(own), [f"--out={tmp_path}/figure"]
    sharpness = ["--steps=1", "--directions=1", "--hessian-images=0", "--images=8", *figure]
    commands = [
        ("evaluate", name),
        ("ensemble", name, name),
        ("soup", name, "--recipe=uniform"),
        ("analyze", "sharpness", name, *sharpness),
        ("analyze", "diversity", name, *figure),
    ]
    for command in commands:
        said_once = said(capsys, *command, expect=2)
        refused = f"model {HERE}.Net of the run is somebody's own code, and was not run: give --trust if you know whose"
        assert said_once == f"error: {refused} it is\n"
    said(capsys, "report", name)
    said(capsys, "processes", f"{name}/config.yaml")
    with pytest.raises(UserError, match=r"Net of the run is somebody's own code"):
        read_classifier(own / "model.safetensors")
    assert not net.exists()
    assert not data.exists()
    for command in commands:
        said(capsys, *command, "--trust")
        assert net.exists()
        assert data.exists()
        net.unlink()
    classifier = read_classifier(own / "model.safetensors", trust=True)
    assert classifier.class_names == ("dark", "light", "never")


@pytest.mark.parametrize(
    ("values", "last", "status"),
    [
        (["model.options={fails: true}"], "stopped: .*own_code.py, line [0-9]+: OSError: no weights today", 1),
        ([f"loss={HERE}.failing"], "error: the first iteration fails: ZeroDivisionError: no loss today", 2),
        (
            [f"loss={{{HERE}.FailsLater: {{calls: 6}}}}"],
            "stopped: .*own_code.py, line .*: ValueError: no more.*",
            1,
        ),
        (
            [f"data.name={HERE}.pair", "data.options={broken: [3]}"],
            f"stopped: image 3 of {HERE}.pair's training split: KeyError: 'image 3 is lost'",
            1,
        ),
    ],
)
def test_own_code_that_fails_while_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[str], last: str, status: int
) -> None:
    """The traceback, and below it a line."""
    lines = said(capsys, "train", f"out={tmp_path}/run", *OWN, *values, expect=status).splitlines()
    assert re.fullmatch(last, lines[-1]), lines[-1]
    assert "Traceback (most recent call last):" in lines
    assert any("own_code.py" in line for line in lines[:-1])
    assert len([line for line in lines if line.startswith(("stopped", "error"))]) == 1


def test_a_preflight_that_cannot_see_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an own network it looks at the data, of a run with own data at its folder."""
    net, data, loss = OWN[-3:]
    base = OWN[:-3]
    assert said(capsys, "processes", f"out={tmp_path}/a", *base, net, loss, "model.options={nix: 1}").endswith("/a\n")
    assert "has 1 of" in said(capsys, "processes", f"out={tmp_path}/a", *base, net, "data.train_images=9", expect=2)
    assert "timm has no model" in said(
        capsys, "processes", f"out={tmp_path}/a", *base, loss, "model.name=timm:nix", expect=2
    )
    said(capsys, "processes", f"out={tmp_path}/a", *base, data, "model.name=timm:nix")
    (tmp_path / "config.yaml").write_text("mine: true\n")
    assert "is no run's" in said(capsys, "processes", f"out={tmp_path}", *base, data, expect=2)
