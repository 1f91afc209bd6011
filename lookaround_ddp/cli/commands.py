"""Runs a command, and says how it ended; the commands that train, or lead to that.

A command imports what it works with when its arguments are known to be right: images, networks and tables take
seconds to import, which help and a mistake need not wait for.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from pathlib import Path

from lookaround_ddp.averaging import NotFiniteError
from lookaround_ddp.cli.arguments import paths, values
from lookaround_ddp.cli.finished import analyze, ensemble, evaluate, report, soup
from lookaround_ddp.cli.say import reader_left, say_once
from lookaround_ddp.cli.trained import export, predict
from lookaround_ddp.config import about_config, config_names, load_config
from lookaround_ddp.distributed import (
    LostRanks,
    PreemptionHandler,
    adopt_step,
    idle_gpus,
    join,
    processes_here,
    tell_agent,
)
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

FULL = (errno.ENOSPC, errno.EDQUOT)  # errors of writing to what has no name, such as standard output


def run(options: argparse.Namespace) -> None:
    """Runs a command; a user's mistake is one line from one rank, and exit status 2."""
    try:
        adopt_step()
        COMMANDS[options.command](options)
    except UserError as error:
        say_once(f"error: {error}", everywhere=error.everywhere)
        sys.exit(MISTAKE)
    except NotFiniteError as error:
        say_once(f"stopped: {error}")
        sys.exit(FAILED)
    except BatchError as error:
        say_once(f"stopped: {error}", of_rank=True, above=error.trace)
        sys.exit(FAILED)
    except LostRanks as error:
        if os.environ.get("RANK", "0") == str(error.speaker):
            print(f"stopped: {error}. {error.mend}", file=sys.stderr, flush=True)
        sys.exit(FAILED)
    except BrokenPipeError as error:
        if not reader_left():
            _stop_if_own(error)
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain once more when it ends
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
        tell_agent(error.number)
        sys.exit(0 if under_torchrun else status_of_signal(error.number))
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

    from lookaround_ddp.training import facts, of_one_replica

    with join(of_one_replica(config)) as world:
        for line in facts(config, world):
            print(f"# {line}", flush=True)


def list_configs(options: argparse.Namespace) -> None:
    """Prints the names of the configs that come with the package, with a line on each."""
    chosen = [name for name in config_names() if options.word in name]
    paper = [name for name in chosen if name.startswith("paper/")]
    if not options.word:
        chosen = [name for name in chosen if name not in paper]
    if not chosen:
        raise UserError(f"no config has {options.word!r} in its name: `configs` lists them")
    width = max(map(len, chosen))
    for name in chosen:
        print(f"{name:{width}}  {about_config(name)}")
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
        from lookaround_ddp.training import run_preflight

        alone = options.nodes == 1 and "SLURM_ARRAY_TASK_ID" not in os.environ  # whose `out` is to be another one
        run_preflight(config, chosen * options.nodes, alone=alone)
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


def bench(options: argparse.Namespace) -> None:
    """Measures the average step, rounds, the data pipeline or the trainer on this machine."""
    from lookaround_ddp.bench import figures as machine
    from lookaround_ddp.bench.average import measure_and_print_average
    from lookaround_ddp.bench.data import measure_and_print_data
    from lookaround_ddp.bench.rounds import measure_and_print_rounds
    from lookaround_ddp.bench.training import measure_and_print_training

    machine.check_writable(options.json)
    figures = {}
    parts = {
        "average": measure_and_print_average,
        "round": measure_and_print_rounds,
        "data": measure_and_print_data,
        "train": measure_and_print_training,
    }
    for name, measure_and_print in parts.items():
        if options.what in (name, "all"):
            figures[name] = measure_and_print(options)
            if options.json is not None and is_main_rank():
                machine.write_figures(options.json, figures)


COMMANDS = {
    **{each.__name__: each for each in (train, processes, reproduce, evaluate, ensemble, soup, report, analyze, bench)},
    **{each.__name__: each for each in (predict, export)},
    "show": show_config,
    "configs": list_configs,
}
