"""The command line: `python -m lookaround_ddp train | evaluate | ensemble | soup | report | analyze | bench`."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lookaround_ddp.analysis.options import add_analyses
from lookaround_ddp.arguments import named_config, paths, runs_named, values
from lookaround_ddp.config import UserError, shortened
from lookaround_ddp.config_file import load_config
from lookaround_ddp.distributed import Preempted, join
from lookaround_ddp.distributed import processes as share
from lookaround_ddp.files import explained
from lookaround_ddp.finished import evaluate_ensemble, evaluate_run
from lookaround_ddp.preempt import Stop
from lookaround_ddp.presence import LostRanks
from lookaround_ddp.record import score_text
from lookaround_ddp.rehearsal import rehearse
from lookaround_ddp.report.curves import draw_curves
from lookaround_ddp.report.paper import paper_table
from lookaround_ddp.report.runs import grouped, read_run
from lookaround_ddp.report.table import results_table, show
from lookaround_ddp.slurm import adopt_step
from lookaround_ddp.soup import cook
from lookaround_ddp.train import fit, run_folder

TRAIN_HELP = "a YAML file (without one: handwritten digits), and values that replace the file's"
MISTAKE, STOPPED, INTERRUPTED = 2, 1, 130
FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of writing to what has no name, such as standard output


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake is one line from one rank, and exit status 2."""
    adopt_step()
    options = _parse(arguments)
    try:
        options.command(options)
    except UserError as error:
        _say_once(f"error: {error}")
        sys.exit(MISTAKE)
    except FloatingPointError as error:
        _say_once(f"stopped: {error}")
        sys.exit(STOPPED)
    except LostRanks as error:
        if os.environ.get("RANK", "0") == str(error.speaker):
            print(f"stopped: {error}. Start the same command again", file=sys.stderr, flush=True)
        sys.exit(STOPPED)
    except BrokenPipeError:  # of `| head`; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno not in FULL:  # no matter of files
            raise
        _say_once(f"error: {explained(error)}")
        sys.exit(MISTAKE)
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED if error.number == signal.SIGINT else 0)
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # a terminal's Ctrl-C reaches every rank
            print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)


def train(options: argparse.Namespace) -> None:
    named = paths(options.arguments)
    if len(named) > 1:
        raise UserError(f"one config at a time: {named[0]} or {named[1]}? Values are written key.path=value")
    config = load_config(named[0] if named else None, values(options.arguments))
    with Stop(config.checkpoint.grace_seconds) as stop, join(config) as world, run_folder(config, world):
        fit(config, world, stop)
        if world.main:
            run = read_run(Path(config.out))
            draw_curves(grouped([run]), Path(config.out) / "curves.png")
            show(results_table(grouped([run])))


def processes(options: argparse.Namespace) -> None:
    named = paths(options.arguments)
    config = load_config(named[0] if named else None, values(options.arguments))
    replicas = len(config.replicas)
    cores = min(len(os.sched_getaffinity(0)), -(-replicas // options.nodes))  # a CPU is no faster with shards
    devices = torch.cuda.device_count() or cores
    chosen = share(replicas, devices, options.nodes)
    if os.environ.get("NODE_RANK", "0") == "0" or not config.data.download:  # one node at a time downloads
        alone = options.nodes == 1 and "SLURM_ARRAY_TASK_ID" not in os.environ  # whose `out` is to be another one
        rehearse(config, chosen * options.nodes, alone=alone)
    print(chosen, config.out)


def evaluate(options: argparse.Namespace) -> None:
    config = named_config(options.run, options.overrides)
    with join(config) as world:
        scores = evaluate_run(options.run, config, world)
        if world.main:
            _print_scores(scores)


def ensemble(options: argparse.Namespace) -> None:
    runs, configs = runs_named(options.arguments)
    with join(configs[0]) as world:
        members, scores = evaluate_ensemble(runs, configs, world)
        if world.main:
            _print_scores({"members": members, "ensemble": scores})


def soup(options: argparse.Namespace) -> None:
    runs, configs = runs_named(options.arguments)
    with join(configs[0]) as world:
        made = cook(runs, configs, options.recipe, world, update_bn=options.update_bn, out=options.out)
        if world.main:
            for name, score in made.ingredients.items():
                print(f"{name}: {score_text(score)} ({made.split}){'' if name in made.chosen else ', left out'}")
            for (one, other), height in made.barriers.items():
                print(f"loss barrier between {one} and {other}: {height:.4f}")
            print(f"soup of {len(made.chosen)}: {score_text(made.test)} (test)")


def report(options: argparse.Namespace) -> None:
    folders = {run.resolve(): run for run in options.runs}  # a run counts once, however often it is named
    groups = grouped([read_run(run) for run in folders.values()])
    if not groups and (options.table is None or options.curves is not None):
        raise UserError("name at least one run's folder")
    if options.curves is not None:
        draw_curves(groups, options.curves)
    if options.table is None:
        show(results_table(groups, options.brief))
        return
    table, others = paper_table(options.table, groups)
    show(table)
    print(*others, sep="\n", end="\n" if others else "")


def analyze(options: argparse.Namespace) -> None:
    from lookaround_ddp.analysis.command import NUMBERS, RUNS  # nobody else needs it

    try:
        if options.analysis in RUNS:
            runs, configs = runs_named(options.arguments)
            with join(configs[0]) as world:
                RUNS[options.analysis](options, runs, configs, world)
        elif os.environ.get("RANK", "0") == "0":
            NUMBERS[options.analysis](options)
    except KeyboardInterrupt:
        kept = ": the same command goes on with the points that are done" if options.analysis == "plane" else ""
        if os.environ.get("RANK", "0") == "0":  # a terminal's Ctrl-C reaches every rank
            print(f"interrupted{kept}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)


def bench(options: argparse.Namespace) -> None:
    from lookaround_ddp.bench import average, machine, pipelines, ranks, rounds, training  # nobody else needs them

    machine.check_writable(options.json)
    figures = {}
    try:
        parts = {"average": average, "round": rounds, "data": pipelines, "train": training}
        for name, part in parts.items():
            if options.what in (name, "all"):
                figures[name] = part.report(options)
                if options.json is not None and ranks.speaks():
                    machine.write_figures(options.json, figures)
    except KeyboardInterrupt:
        _say_once("interrupted: every process that was started has ended")
        sys.exit(INTERRUPTED)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand between values, too, which argparse does not know of commands."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    named = next((name for name in ("arguments", "overrides", "runs") if hasattr(options, name)), None)
    if rest and (named is None or any(each.startswith("-") for each in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and named is not None:
        kind = Path if named == "runs" else str
        setattr(options, named, [*getattr(options, named), *map(kind, rest)])
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lookaround_ddp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("train", help="train, or go on with, the run that a config describes")
    command.add_argument("arguments", nargs="*", metavar="[CONFIG] [key.path=value ...]", help=TRAIN_HELP)
    command.set_defaults(command=train)

    command = commands.add_parser("processes", help="for launchers: processes for this node, run folder")
    command.add_argument("arguments", nargs="*", metavar="[CONFIG] [key.path=value ...]", help=TRAIN_HELP)
    command.add_argument("--nodes", type=int, default=1)
    command.set_defaults(command=processes)

    command = commands.add_parser("evaluate", help="measure a finished run's scores again")
    command.add_argument("run", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key.path=value")
    command.set_defaults(command=evaluate)

    command = commands.add_parser("ensemble", help="score the mean prediction of finished runs' models")
    command.add_argument("arguments", nargs="+", metavar="RUN ... [key.path=value ...]")
    command.set_defaults(command=ensemble)

    command = commands.add_parser("soup", help="average the weights of finished runs that started from one point")
    command.add_argument("arguments", nargs="+", metavar="RUN ... [key.path=value ...]")
    command.add_argument("--recipe", default="greedy", metavar="uniform|top:N|greedy", help="by default greedy")
    command.add_argument("--update-bn", action="store_true", help="measure batch-norm's statistics of mixtures anew")
    command.add_argument("--out", type=Path, metavar="DIR", help="save the soup, as a run's folder")
    command.set_defaults(command=soup)

    command = commands.add_parser("report", help="a table of runs' scores; runs that differ in seeds are one row")
    command.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--brief", action="store_true", help="of each run only what its method is judged by")
    what.add_argument("--table", metavar="NAME", help="a table of the paper, by name or number, beside these runs")
    command.add_argument("--curves", type=Path, metavar="PNG", help="also draw their curves into this file")
    command.set_defaults(command=report)

    command = commands.add_parser("analyze", help="what the paper derives and what its figures show, computed")
    add_analyses(command.add_subparsers(required=True, metavar="ANALYSIS"))
    command.set_defaults(command=analyze)

    command = commands.add_parser("bench", help="measure the average step, augmentations and the trainer here")
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
    group.add_argument("--consumer", default="timm:resnet18", metavar="MODEL", help="trained at 224 px, for JPEG files")
    command.set_defaults(command=bench)
    return parser


def _print_scores(scores: Mapping[str, Any]) -> None:
    for name, score in scores.items():
        if name.startswith("ensemble"):
            for kind, each in score.items():
                print(f"{name} (mean of {kind}) {score_text(each)}")
        elif isinstance(score, list):
            for number, each in enumerate(score):
                print(f"{name.removesuffix('s')} {number} {score_text(each)}")
        else:
            print(f"{name} {score_text(score)}")


def _say_once(text: str) -> None:
    """Rank 0 speaks; another rank speaks only if it is still alive when rank 0 should have ended the job.

    One line, whatever names and values are in it.
    """
    text = shortened(" ".join(text.splitlines()), 2000)
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(3)
        text = f"rank {rank}: {text}"
    print(text, file=sys.stderr, flush=True)
