"""A command's arguments: files and run folders, and values of configs, in any order."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lookaround_ddp.checkpoint import check_network, check_shipped, run_config, run_of
from lookaround_ddp.config import Config, changed_keys
from lookaround_ddp.errors import UserError, is_main_rank
from lookaround_ddp.own_code import refuse


def paths(arguments: Sequence[str]) -> list[Path]:
    """Returns the arguments that are files or folders, whose names may have a = in them; the others are values."""
    exists = os.path.exists  # Path.exists raises where a value is too long for a file's name
    return [Path(argument) for argument in arguments if "=" not in argument or exists(argument)]


def values(arguments: Sequence[str]) -> list[str]:
    return [argument for argument in arguments if Path(argument) not in paths(arguments)]


def runs_named(arguments: Sequence[str], trust: bool, checkpoints: bool = False) -> tuple[list[Path], list[Config]]:
    """Returns the named run folders and their configs, with the values that replace some.

    Args:
        trust: run what their configs name of somebody's own.
        checkpoints: take the folder of a run's checkpoint, too, as it is, with the run's config.
    """
    runs = paths(arguments)
    if not runs:
        raise UserError("name at least one run's folder")
    return runs, [named_config(run_of(run)[0] if checkpoints else run, values(arguments), trust) for run in runs]


def refuse_recalibration(run: Path, config: Config) -> None:
    """Raises UserError if a value would have saved models scored with other batch-norm statistics than they have."""
    own = run_config(run).evaluate
    given = [
        f"evaluate.{key}"
        for key in ("recalibrate", "recalibrate_iterations")
        if getattr(config.evaluate, key) != getattr(own, key)
    ]
    if given:
        saved = "with batch-norm statistics measured anew" if own.recalibrate else "with the statistics of training"
        raise UserError(
            f"{given[0]} changes nothing here: {run} was saved {saved} (trained with evaluate.recalibrate="
            f"{str(own.recalibrate).lower()}), and is scored as it was saved"
        )


def named_config(run: Path, values: Sequence[str], trust: bool) -> Config:
    """Returns a run's config with these values instead of its own; warns where it was trained with others.

    Raises:
        UserError: it is no run's folder, or that of scores which other runs' models have; a file in it is not what the
            run left; it names a network, data or a loss of somebody's own, which are not trusted.
    """
    check_network(run)
    config, own = run_config(run, values), run_config(run)
    check_shipped(own)
    if not trust:
        refuse(config.own_code())
    changes = list(changed_keys(own.identity(), config.identity()))
    if changes and is_main_rank():
        print(f"warning: {run} was trained with other values: {'; '.join(changes)}", file=sys.stderr)
    return config
