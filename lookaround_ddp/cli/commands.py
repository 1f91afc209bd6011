"""What `python -m lookaround_ddp train | reproduce | evaluate | ensemble | soup | report | ...` do.

A command imports what it works with when its arguments are known to be right: images, networks and tables take
seconds to import, which help and a mistake need not wait for.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookaround_ddp.cli.arguments import named_config, paths, refuse_recalibration, runs_named, values
from lookaround_ddp.cli.say import say_once
from lookaround_ddp.cli.use import export, predict
from lookaround_ddp.config import about, load_config, names
from lookaround_ddp.distributed import LostRanks, PreemptionHandler, adopt_step, idle_gpus, join, processes_here
from lookaround_ddp.errors import (
    FAILED,
    MISTAKE,
    BatchError,
    Preempted,
    UserError,
    explained,
    is_main_rank,
    status_of_signal,
    told,
)
from lookaround_ddp.own_code import place_in_own_code

INTERRUPTED = status_of_signal(signal.SIGINT)


FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of writing to what has no name, such as standard output


def run(options: argparse.Namespace) -> None:
    """Runs a command; a user's mistake is one line from one rank, and exit status 2."""
    try:
        adopt_step()
        COMMANDS[options.command](options)
    except UserError as error:
        say_once(f"error: {error}")
        sys.exit(MISTAKE)
    except FloatingPointError as error:
        say_once(f"stopped: {error}")
        sys.exit(FAILED)
    except BatchError as error:
        say_once(f"stopped: {error}", of_rank=True, above=error.trace)
        sys.exit(FAILED)
    except LostRanks as error:
        if os.environ.get("RANK", "0") == str(error.speaker):
            print(f"stopped: {error}. Start the same command again", file=sys.stderr, flush=True)
        sys.exit(FAILED)
    except BrokenPipeError:  # of `| head`; Python would complain once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None and error.errno not in FULL:  # no matter of files
            _stop_if_own(error)
            raise
        say_once(f"error: {explained(error)}")
        sys.exit(MISTAKE)
    except Preempted as error:
        if is_main_rank():
            print(error, file=sys.stderr, flush=True)
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # which would start the ranks again
        sys.exit(0 if under_torchrun else status_of_signal(error.number))
    except KeyboardInterrupt:
        if is_main_rank():  # a terminal's Ctrl-C reaches every rank
            print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        _stop_if_own(error)
        raise


def _stop_if_own(error: Exception) -> None:
    """Ends the program with the traceback and a line, if somebody's own code raised the error."""
    place = place_in_own_code(error)
    if place is not None:
        say_once(f"stopped: {place}: {told(error)}", of_rank=True, above=traceback.format_exc())
        sys.exit(FAILED)


def train(options: argparse.Namespace) -> None:
    """Trains the run that a config describes, or goes on with it; draws its curves and prints its scores."""
    named = paths(options.arguments)
    if len(named) > 1:
        raise UserError(f"one config at a time: {named[0]} or {named[1]}? Values are written key.path=value")
    config = load_config(named[0] if named else None, values(options.arguments))

    from lookaround_ddp.checkpoint import run_folder
    from lookaround_ddp.report import draw_curves, grouped, read_run, results_table, show
    from lookaround_ddp.training import fit

    with (
        PreemptionHandler(config.checkpoint.grace_seconds) as preemption,
        join(config) as world,
        run_folder(config, world),
    ):
        fit(config, world, preemption)
        if world.main:
            run = read_run(Path(config.out))
            draw_curves(grouped([run]), Path(config.out) / "curves.png")
            show(results_table(grouped([run])))


def show_config(options: argparse.Namespace) -> None:
    """Prints the whole config as YAML, with comments on what it would train; trains nothing."""
    named = paths(options.arguments)
    config = load_config(named[0] if named else None, values(options.arguments))
    print(config.text(), end="", flush=True)

    from lookaround_ddp.training import facts

    with join(config.model_copy(update={"replicas": config.replicas[:1]})) as world:
        for line in facts(config, world):
            print(f"# {line}", flush=True)


def list_configs(options: argparse.Namespace) -> None:
    """Prints the names of the configs that come with the package, with a line on each."""
    chosen = [name for name in names() if options.word in name]
    paper = [name for name in chosen if name.startswith("paper/")]
    if not options.word:
        chosen = [name for name in chosen if name not in paper]
    if not chosen:
        raise UserError(f"no config has {options.word!r} in its name: `configs` lists them")
    width = max(map(len, chosen))
    for name in chosen:
        print(f"{name:{width}}  {about(name)}")
    if not options.word:
        print(f"and {len(paper)} cells of the paper's tables and figures: `configs paper` lists them")


def processes(options: argparse.Namespace) -> None:
    """Prints the number of processes for this node and the run folder, after the preflight."""
    named = paths(options.arguments)
    config = load_config(named[0] if named else None, values(options.arguments))
    chosen = processes_here(config, options.nodes)
    if idle := idle_gpus(config, chosen):
        print(idle, file=sys.stderr)
    if os.environ.get("NODE_RANK", "0") == "0" or not config.data.download:  # one node at a time downloads
        from lookaround_ddp.training import rehearse

        alone = options.nodes == 1 and "SLURM_ARRAY_TASK_ID" not in os.environ  # whose `out` is to be another one
        rehearse(config, chosen * options.nodes, alone=alone)
    print(chosen, config.out)


def reproduce(options: argparse.Namespace) -> None:
    """Trains and makes all cells of tables, and prints these; or says what there is to do."""
    from lookaround_ddp.reproduce import carry_out, make_plan, show_plan, show_results

    seeds, runs = options.seeds, options.runs
    plan = make_plan([str(path) for path in paths(options.arguments)], values(options.arguments), seeds, runs)
    if options.dry_run:
        show_plan(plan)
        return
    failed = carry_out(plan)
    show_results(plan)
    if failed:
        print(f"failed: {', '.join(failed)}; the same command goes on with them", file=sys.stderr)
        sys.exit(FAILED)


def evaluate(options: argparse.Namespace) -> None:
    """Measures a finished run's scores again and prints them, or those of each class."""
    config = named_config(options.run, options.overrides, options.trust)
    refuse_recalibration(options.run, config)
    if options.out is not None and (not options.per_class or options.out.suffix not in (".json", ".csv")):
        raise UserError(f"--out {options.out}: it takes a .json or .csv, and goes with --per-class")

    from lookaround_ddp.evaluation import evaluate_run, per_class, show_classes, write_classes

    with join(config) as world:
        if options.per_class:
            found = per_class(options.run, config, world)
            if world.main:
                show_classes(found)
                if options.out is not None:
                    write_classes(found, options.out)
            return
        scores = evaluate_run(options.run, config, world)
        if world.main:
            _print_scores(scores)


def ensemble(options: argparse.Namespace) -> None:
    """Prints the scores of finished runs' models, and of their mean prediction."""
    runs, configs = runs_named(options.arguments, options.trust)
    for run, config in zip(runs, configs, strict=True):
        refuse_recalibration(run, config)

    from lookaround_ddp.evaluation import evaluate_ensemble

    with join(configs[0]) as world:
        members, scores = evaluate_ensemble(runs, configs, world, options.out)
        if world.main:
            _print_scores({"members": members, "ensemble": scores})


def soup(options: argparse.Namespace) -> None:
    """Averages the weights of finished runs, prints what it is worth, and saves it if asked to."""
    runs, configs = runs_named(options.arguments, options.trust)

    from lookaround_ddp.data import imported, refused
    from lookaround_ddp.evaluation import cook, score_text

    with join(configs[0]) as world:
        code = imported if options.trust else refused
        made = cook(runs, configs, options.recipe, world, update_bn=options.update_bn, code=code, out=options.out)
        if world.main:
            for name, score in made.ingredients.items():
                print(f"{name}: {score_text(score)} ({made.split}){'' if name in made.chosen else ', left out'}")
            for (one, other), height in made.barriers.items():
                print(f"loss barrier between {one} and {other}: {height:.4f}")
            print(f"soup of {len(made.chosen)}: {score_text(made.test)} (test)")


def report(options: argparse.Namespace) -> None:
    """Prints a table of runs, or a table of the paper beside them; draws their curves if asked to."""
    from lookaround_ddp.report import draw_curves, grouped, paper_page, read_runs, results_table, show, write_csv

    groups = grouped(read_runs(options.runs))
    if not groups and (options.table is None or options.curves is not None):
        raise UserError("name at least one run's folder")
    if options.curves is not None:
        draw_curves(groups, options.curves)
    if options.csv is not None:
        write_csv(groups, options.csv)
    if options.table is None:
        show(results_table(groups, options.brief))
    else:
        print(paper_page(options.table, groups))


def analyze(options: argparse.Namespace) -> None:
    """Computes one of the paper's analyses, of numbers or of runs."""
    from lookaround_ddp.analysis.command import OF_MODELS, RUNS, function_of

    try:
        if options.analysis in RUNS:
            runs, configs = runs_named(options.arguments, options.trust, checkpoints=options.analysis in OF_MODELS)
            analysis = function_of(options.analysis)
            with join(configs[0]) as world:
                analysis(options, runs, configs, world)
        elif is_main_rank():
            function_of(options.analysis)(options)
    except KeyboardInterrupt:
        kept = ": the same command goes on with the points that are done" if options.analysis == "plane" else ""
        if is_main_rank():  # a terminal's Ctrl-C reaches every rank
            print(f"interrupted{kept}", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)


def bench(options: argparse.Namespace) -> None:
    """Measures the average step, rounds, the data pipeline or the trainer on this machine."""
    from lookaround_ddp.bench import average, rounds, training
    from lookaround_ddp.bench import data as pipelines
    from lookaround_ddp.bench import figures as machine

    machine.check_writable(options.json)
    figures = {}
    try:
        parts = {"average": average, "round": rounds, "data": pipelines, "train": training}
        for name, part in parts.items():
            if options.what in (name, "all"):
                figures[name] = part.report(options)
                if options.json is not None and is_main_rank():
                    machine.write_figures(options.json, figures)
    except KeyboardInterrupt:
        say_once("interrupted: every process that was started has ended")
        sys.exit(INTERRUPTED)


COMMANDS = {
    **{each.__name__: each for each in (train, processes, reproduce, evaluate, ensemble, soup, report, analyze, bench)},
    **{each.__name__: each for each in (predict, export)},
    "show": show_config,
    "configs": list_configs,
}


def _print_scores(scores: Mapping[str, Any]) -> None:
    from lookaround_ddp.evaluation import score_text

    for name, score in scores.items():
        if name.startswith("ensemble"):
            for kind, each in score.items():
                print(f"{name} (mean of {kind}) {score_text(each)}")
        elif isinstance(score, list):
            for number, each in enumerate(score):
                print(f"{name.removesuffix('s')} {number} {score_text(each)}")
        else:
            print(f"{name} {score_text(score)}")
