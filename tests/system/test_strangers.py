"""A run that somebody else may have made: what only reads it runs nothing that its config names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.cli import main
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
