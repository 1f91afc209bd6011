"""The commands on finished runs. As all others they import what they work with when their arguments are right."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from lookaround_ddp.cli.arguments import named_config, refuse_recalibration, runs_named
from lookaround_ddp.distributed import join
from lookaround_ddp.errors import UserError, is_main_rank


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

    from lookaround_ddp.evaluation import cook, score_text
    from lookaround_ddp.own_code import imported, refused

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

    if options.analysis in RUNS:
        runs, configs = runs_named(options.arguments, options.trust, checkpoints=options.analysis in OF_MODELS)
        analysis = function_of(options.analysis)
        with join(configs[0]) as world:
            analysis(options, runs, configs, world)
    elif is_main_rank():
        function_of(options.analysis)(options)


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
