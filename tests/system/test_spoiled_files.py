"""Two hundred folders of runs, each with one file spoiled: a refusal in a line, or what the whole folder gives."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lookaround_ddp.cli import main
from tests.support.runs import TINY, train, weights
from tests.support.spoiled_files import spoil

FOLDERS, PARTS = 200, 4
CONFIG = (*TINY, "evaluate.replicas=true", "data.validation=20", "checkpoint.every=1", "replicas=[[crop],[hflip]]")
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda run: ["report", str(run)],
    "evaluate": lambda run: ["evaluate", str(run)],
    "replicas": lambda run: ["evaluate", str(run), "evaluate.replicas=true"],
    "train": lambda run: ["train", str(run / "config.yaml"), f"out={run}"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one config, with different seeds."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in (0, 1):
        train(folder / str(seed), *CONFIG, f"seed={seed}")
    return [folder / "0", folder / "1"]


def said(arguments: list[str]) -> tuple[int, str, str]:
    """The exit status of a command, and what it said on standard output and on standard error."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("part", range(PARTS))
def test_a_spoiled_file(part: int, runs: list[Path], tmp_path: Path) -> None:
    """Of `train`, the weights are compared: what it lost it makes again."""
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    whole = {name: said(command(run))[1] for name, command in COMMANDS.items()}
    refused = 0
    for seed in range(part, FOLDERS, PARTS):
        shutil.rmtree(run)
        shutil.copytree(runs[0], run)
        done = spoil(run, runs[1], seed)
        for name, command in COMMANDS.items():
            status, out, err = said(command(run))
            what = f"seed {seed}, {done}, {name}: {status} {out} {err}"
            assert status in (0, 2), what
            assert "Traceback" not in err, what
            refused += status == 2
            if status == 2:
                assert err.splitlines()[-1].startswith("error: "), what
            elif name == "train":
                assert weights(run) == weights(runs[0]), what
            elif done == "gone of best.safetensors":  # its scores are left out
                assert set(out.splitlines()) <= set(whole[name].splitlines()), what
            else:
                assert out == whole[name] or "not finished" in out or "iteration 5's" in out, what
    assert refused > FOLDERS / PARTS
