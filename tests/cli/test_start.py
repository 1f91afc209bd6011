"""What a command loads before it does anything: help, reports and mistakes do not wait for what trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT

HEAVY = ("torchvision", "timm", "matplotlib", "sklearn", "lookaround_ddp.data", "lookaround_ddp.training")

# Calls main with each command line in turn, and tells: its exit status, and which of the watched modules are loaded.
CALLS = """
import json, sys
from lookaround_ddp.cli import main
told = []
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
        status = 0
    except SystemExit as ended:
        status = ended.code
    told.append([status, [name for name in json.loads(sys.argv[2]) if name in sys.modules]])
print(json.dumps(told))
"""


def after_each(*commands: list[str], watch: tuple[str, ...], **environment: str) -> list[list[object]]:
    """[exit status, loaded modules] after each command, all in one process that begins with nothing imported."""
    said = python(CALLS, json.dumps(commands), json.dumps(watch), **environment)
    told: list[list[object]] = json.loads(said.splitlines()[-1])
    return told


def python(program: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TEST_TIMEOUT,
        check=True,
    )
    return done.stdout


def test_the_package_loads_nothing_that_torch_does_not() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import lookaround_ddp; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {'torch'})"
    )
    assert python(program) == "lookaround_ddp\n"


def test_help_reports_counts_and_mistakes_are_light(lookaround: Path) -> None:
    """The count is that of a launcher's second node, which leaves the data to the first and looks at no config's."""
    told = after_each(
        ["report", "--help"],
        ["report", str(lookaround)],
        ["processes", "data.download=true", "--nodes=3"],
        ["reproduce", "cifar", "--dry-run"],
        ["train", "optimzer.lr=0.1"],
        ["evaluate", f"{lookaround}/nowhere"],
        ["analyze", "plane", f"{lookaround}/nowhere"],
        ["predict", f"{lookaround}/nowhere", "a.png"],
        watch=HEAVY,
        NODE_RANK="1",
    )
    assert told == [[0, []]] * 4 + [[2, []]] * 4


def test_who_reads_runs_does_not_load_the_trainer(lookaround: Path) -> None:
    """The run has neither weights nor checkpoints: each command ends when it has looked for them."""
    run = str(lookaround)
    commands = [
        *(["evaluate", run], ["ensemble", run], ["soup", run, run]),
        *(["analyze", "sharpness", run], ["analyze", "plane", run], ["analyze", "trajectory", run]),
    ]
    watch = ("torchvision", "lookaround_ddp.training")
    told = after_each(*commands, watch=watch)
    assert told == [[2, ["torchvision"]]] * 5 + [[2, list(watch)]]  # `analyze trajectory` trains on


LEFT = """
import os, sys
from lookaround_ddp.cli import commands
from lookaround_ddp.cli.say import reader_left
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)
def fails(options):
    raise BrokenPipeError("a socket of somebody's own")
commands.COMMANDS["fails"] = fails
options = type("Options", (), {"command": "fails"})
for gone in (False, True):
    if gone:
        os.close(reader)
    try:
        commands.run(options)
        said = "silent"
    except BrokenPipeError:
        said = "raised"
    print(reader_left() if not gone else gone, said, file=sys.stderr)
"""


def test_only_a_reader_that_left_ends_a_command_in_silence() -> None:
    """`| head` has read enough; another broken pipe is an error like any other."""
    done = subprocess.run([sys.executable, "-c", LEFT], cwd=ROOT, capture_output=True, text=True, timeout=TEST_TIMEOUT)
    assert done.stderr.splitlines() == ["False raised", "True silent"]
