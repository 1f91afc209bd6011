"""What `--help` shows, and what is said when Ctrl-C ends a command."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lookaround_ddp.cli import commands, main
from lookaround_ddp.cli.examples import EXAMPLES
from lookaround_ddp.cli.parser import parse_command
from lookaround_ddp.config import load_config
from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT

ANALYSES = ("quadratic", "convergence", "diversity", "sharpness", "plane", "trajectory")


def test_every_command_has_examples() -> None:
    assert EXAMPLES.keys() == {*commands.COMMANDS, *ANALYSES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser takes them, and the config its values; help shows them as they are."""
    assert 1 <= len(EXAMPLES[name]) <= 2
    for example in EXAMPLES[name]:
        program, *words = shlex.split(example)
        assert program == "lookaround_ddp"
        options = parse_command(words)
        assert name in (options.command, getattr(options, "analysis", None))
        if name in ("train", "show"):
            load_config(words[1], words[2:])
    with pytest.raises(SystemExit) as ended:
        main([*(["analyze"] if name in ANALYSES else []), name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.endswith("for example:\n" + "".join(f"  {example}\n" for example in EXAMPLES[name]))


BEGINS_ANEW = "the same command begins anew"
AFTER = {
    "train": "the same command goes on from the last checkpoint, if there is one",
    "reproduce": "the same command leaves out what is done, and goes on with the rest",
    "plane": "the same command goes on with the points that are done",
    "bench": "every process that was started has ended",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_ctrl_c_says_what_is_true_of_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: argparse.Namespace) -> Any:
        raise KeyboardInterrupt

    words = shlex.split(EXAMPLES[name][0])[1:]
    monkeypatch.setitem(commands.COMMANDS, words[0], interrupted)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    after = AFTER.get("diversity" if name == "analyze" else name, BEGINS_ANEW)
    assert capsys.readouterr() == ("", f"interrupted: {after}\n")


@pytest.mark.parametrize(
    ("line", "completed"),
    [("lookaround_ddp ex", ["export "]), ("lookaround_ddp analyze plane --po", ["--points "])],
)
def test_a_shell_completes_commands_and_options(line: str, completed: list[str], tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    said = tmp_path / "said"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(said)}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-m", "lookaround_ddp"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **asked}, timeout=TEST_TIMEOUT, check=True)
    assert said.read_text().split("\n") == completed
