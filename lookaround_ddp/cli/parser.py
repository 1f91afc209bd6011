"""The words of the command line: commands, their options, and what these say of themselves."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lookaround_ddp import __version__
from lookaround_ddp.analysis.arguments import add_analyses, add_trust
from lookaround_ddp.cli.examples import EXAMPLES
from lookaround_ddp.config import keys_named
from lookaround_ddp.errors import UserError

DESCRIPTION = "Trains networks with Lookaround, or with what it is compared with, and looks at what came of it."


HELP_WIDTH = 80  # of what a command does

TRAIN_HELP = "a YAML file (without one: handwritten digits), and values that replace the file's"


def parse_command(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns a command's name, as `command`, and its options.

    Options may stand between values, too, which argparse does not know of commands.

    Raises:
        UserError: a command, an option or a value that it does not know.
    """
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(arguments)
    named = next((name for name in ("arguments", "overrides", "runs", "images") if hasattr(options, name)), None)
    if rest and (named is None or any(each.startswith("-") for each in rest)):
        mend = _as_value(sys.argv[1:] if arguments is None else arguments, rest) if named in WITH_VALUES else ""
        raise UserError(f"unrecognized arguments: {' '.join(rest)}{mend}: see {parser.prog} {options.command} --help")
    if rest and named is not None:
        kind = Path if named in ("runs", "images") else str
        setattr(options, named, [*getattr(options, named), *map(kind, rest)])
    return options


WITH_VALUES = ("arguments", "overrides")  # of commands that take key.path=value


def _as_value(arguments: Sequence[str], rest: Sequence[str]) -> str:
    """Returns how an option that is none would be written as a value of the config, if there is such a key."""
    option = next(each for each in rest if each.startswith("-"))
    key, equals, value = option.lstrip("-").replace("-", "_").partition("=")
    following = list(arguments)[list(arguments).index(option) + 1 :]
    if not equals:
        value = following[0] if following and not following[0].startswith("-") else "true"
    known = keys_named(key)
    return f" (did you mean {known[0]}={value}?)" if known else ""


class _Parser(argparse.ArgumentParser):
    """Its mistakes are told as all others are. (The commands' parsers are of this class too.)"""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def _count(text: str) -> int:
    """Returns a number of things, 1 or more."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 1, 2 or 3")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    """Returns the seeds of a list such as 0,1,2, each once."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,1,2")
    return tuple(dict.fromkeys(map(int, parts)))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lookaround_ddp", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"lookaround_ddp {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")

    command = _command(commands, "train", "train, or go on with, the run that a config describes")
    command.add_argument("arguments", nargs="*", metavar="[CONFIG] [key.path=value ...]", help=TRAIN_HELP)

    command = _command(commands, "show", "print a whole config, and what it would train: processes, iterations, time")
    command.add_argument("arguments", nargs="*", metavar="[CONFIG] [key.path=value ...]", help=TRAIN_HELP)

    command = _command(commands, "configs", "list the configs that come with the package")
    command.add_argument("word", nargs="?", default="", help="only those with this in their names, such as paper/cifar")

    command = _command(commands, "processes", "for launchers: processes for this node, run folder")
    command.add_argument("arguments", nargs="*", metavar="[CONFIG] [key.path=value ...]", help=TRAIN_HELP)
    command.add_argument("--nodes", type=int, default=1)

    command = _command(commands, "reproduce", "train and make the cells of the paper's tables, or your own")
    named = "a table of the paper, by name or number; a file, or all files of a folder; and values for their configs"
    command.add_argument("arguments", nargs="+", metavar="TABLE|CELL.yaml|DIR ... [key.path=value ...]", help=named)
    command.add_argument("--dry-run", action="store_true", help="only list what would run")
    command.add_argument("--seeds", type=_seeds, default=(0,), metavar="0,1,2", help="of each cell; by default 0")
    folder = "where runs are, each in TABLE/CELL-sSEED (default: runs/paper of the paper's cells, runs of others)"
    command.add_argument("--runs", type=Path, metavar="DIR", help=folder)

    command = _command(commands, "evaluate", "measure a finished run's scores again")
    command.add_argument("run", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key.path=value")
    about = "the accuracy of each class, and what it is taken for, of what the run is judged by"
    command.add_argument("--per-class", action="store_true", help=about)
    command.add_argument("--out", type=Path, metavar="FILE", help="write it, too: a .json or .csv with all counts")
    add_trust(command)

    command = _command(commands, "ensemble", "score the mean prediction of finished runs' models")
    command.add_argument("arguments", nargs="+", metavar="RUN ... [key.path=value ...]")
    command.add_argument("--out", type=Path, metavar="DIR", help="save the scores, as a run's folder")
    add_trust(command)

    command = _command(commands, "soup", "average the weights of finished runs that started from one point")
    command.add_argument("arguments", nargs="+", metavar="RUN ... [key.path=value ...]")
    command.add_argument("--recipe", default="greedy", metavar="uniform|top:N|greedy", help="by default greedy")
    command.add_argument("--update-bn", action="store_true", help="measure batch-norm's statistics of mixtures anew")
    command.add_argument("--out", type=Path, metavar="DIR", help="save the soup, as a run's folder")
    add_trust(command)

    model = "a model.safetensors, or the folder of a finished run"
    command = _command(commands, "predict", "name the classes of images")
    command.add_argument("model", type=Path, metavar="MODEL", help=model)
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a file, or a folder of them")
    command.add_argument("--top", type=_count, default=1, metavar="N", help="so many classes, from the most probable")
    command.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each image into this file instead")
    command.add_argument("--batch-size", type=_count, default=256, metavar="N", help="by default 256, as `evaluate`")
    add_trust(command)

    command = _command(commands, "export", "write a trained model in the form that other programs read")
    command.add_argument("model", type=Path, metavar="MODEL", help=model)
    command.add_argument("--timm", type=Path, metavar="DIR", help="a folder for timm, of a network that timm has")
    command.add_argument("--onnx", type=Path, metavar="FILE", help="needs the extra `onnx`")
    add_trust(command)

    command = _command(commands, "report", "a table of runs' scores; runs that differ in seeds are one row")
    command.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--brief", action="store_true", help="of each run only what its method is judged by")
    what.add_argument("--table", metavar="NAME", help="a table of the paper, by name or number, or all")
    command.add_argument("--curves", type=Path, metavar="PNG", help="also draw their curves into this file")
    command.add_argument("--csv", type=Path, metavar="FILE", help="also write every run's scores, unrounded")

    command = _command(commands, "analyze", "what the paper derives and what its figures show, computed")
    analyses = command.add_subparsers(required=True, metavar="ANALYSIS")
    add_analyses(analyses)

    command = _command(commands, "bench", "measure the average step, augmentations and the trainer here")
    choices = ("all", "average", "round", "data", "train")
    command.add_argument("what", nargs="?", choices=choices, default="all")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the figures into this file")
    group = command.add_argument_group("average and round", "on ranks of their own, or on those of torchrun")
    group.add_argument("--ranks", type=int, default=3, help="processes that average")
    group.add_argument("--repeats", type=int, default=15)
    group = command.add_argument_group("average")
    group.add_argument("--model", default="timm:resnet50", help="whose parameters to average (1,000 classes)")
    group.add_argument("--step-ms", type=float, metavar="MS", help="of your training step: adds the cost of a round")
    group.add_argument("--epoch-steps", type=int, default=391, metavar="N", help="steps in an epoch (391: CIFAR)")
    group = command.add_argument_group("round")
    group.add_argument("--round-model", default="resnet18", metavar="MODEL")
    group.add_argument("--size", type=int, default=32, help="of its images, in pixels")
    group.add_argument("--round-batch-size", type=int, default=16, metavar="N")
    wait = "a step waits so long, a third of it in the forward pass, as a GPU's host does, and computes nothing"
    group.add_argument("--wait-ms", type=float, metavar="MS", help=wait)
    group.add_argument("--k", type=int, default=5, help="steps in a round")
    group = command.add_argument_group("train, and data")
    group.add_argument("--train-model", default="resnet8", metavar="MODEL")
    group.add_argument("--data", default="digits", help="digits (the default) need no files")
    group.add_argument("--root", default="data", metavar="DIR", help="where other data is")
    group.add_argument("--batch-size", type=int, default=128)
    group.add_argument("--workers", type=int, default=0, help="loader processes of each rank")
    group.add_argument("--channels-last", action="store_true")
    group.add_argument("--iterations", type=int, default=56, help="of each replica in each run, in whole epochs")
    group.add_argument("--rounds", type=int, default=3, help="runs of each competitor")
    group.add_argument("--pipeline", choices=("workers", "device"), default="workers", help="the trainer's (train)")
    group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="(train)")
    group.add_argument("--compile", action="store_true", help="(train)")
    group.add_argument("--fast-kernels", action="store_true", help="(train) deterministic: false, cudnn.benchmark")
    group.add_argument("--image-size", dest="image_size", type=int, help="(train) with --data noise any")
    group.add_argument("--consumer", default="timm:resnet18", metavar="MODEL", help="trained at 224 px, for JPEG files")
    for name, described in (commands.choices | analyses.choices).items():
        described.formatter_class = argparse.RawDescriptionHelpFormatter
        described.description = textwrap.fill(described.description or "", HELP_WIDTH)
        described.epilog = "\n  ".join(["for example:", *EXAMPLES[name]])
    return parser


def _command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    return command
