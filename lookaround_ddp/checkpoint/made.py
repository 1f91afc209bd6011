"""What is made of finished runs and trains nothing: ensembles, soups, the best of several, a sweep's winner.

Its folder reads like a finished run's. Of what it was made, with which configs, is in result.json, so that a report
knows it again wherever it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookaround_ddp.checkpoint.run_folder import METRICS, MODEL, RESULT
from lookaround_ddp.checkpoint.shipped import write_result
from lookaround_ddp.config import Config, dump
from lookaround_ddp.errors import UserError
from lookaround_ddp.files import regular, write_atomically


def check_free(out: Path) -> None:
    """Raises UserError if the folder holds a run, or something that was made whole."""
    if out.is_file() or any((out / name).exists() for name in (RESULT, METRICS)):
        raise UserError(f"{out} is there already: give another --out")


def save_made(
    out: Path, config: Config, how: Mapping[str, Any], runs: Sequence[Path], configs: Sequence[Config], result: Any
) -> None:
    """Writes config.yaml and, last, result.json, beside what is in the folder already.

    Args:
        config: of the network that it is, or is like.
        how: as `Recipe.record` returns it.
        runs: what it was made of.
        configs: of these runs.
        result: its scores, and what else it leaves, JSON-able.
    """
    out.mkdir(parents=True, exist_ok=True)
    values = config.model_copy(update={"out": str(out)}).model_dump(mode="json")
    write_atomically(out / "config.yaml", dump(values).encode())
    whole = [each.identity() | {"evaluate": each.evaluate.model_dump(mode="json")} for each in configs]
    of = [{"run": str(run), "config": each} for run, each in zip(runs, whole, strict=True)]
    left = {
        **result,
        "recipe": dict(how),
        "of": of,
        "iterations": 0,
        "epochs": 0,
        "seconds": 0.0,
        "total_seconds": 0.0,
        "best": None,
    }
    write_result(config.model_copy(update={"out": str(out)}), left)


def check_network(run: Path) -> None:
    """Raises UserError if the folder holds scores of others' models, and no model of its own."""
    try:
        made_of = json.loads(regular(run / RESULT).read_text())["of"]
        names = " ".join(each["run"] for each in made_of)
    except (OSError, ValueError, LookupError, TypeError):  # no such folder, or a run's
        return
    if not (run / MODEL).exists():
        raise UserError(f"{run} has no models of its own: it was made of {names}, which have")
