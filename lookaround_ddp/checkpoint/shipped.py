"""result.json, with the checksums of what a finished run ships; and whether the files of a run belong together.

Runs that finished before there were checksums have none, and are read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookaround_ddp.checkpoint.checkpoints import CHECKPOINTS, RunState, checkpoints_in, inspect
from lookaround_ddp.checkpoint.digests import file_digest, json_digest
from lookaround_ddp.checkpoint.model_file import read_metadata
from lookaround_ddp.checkpoint.run_folder import BEST, METRICS, MODEL, RESULT, TRAJECTORY, member_files
from lookaround_ddp.config import Config, at_length_of, changed_keys, grown, made_before
from lookaround_ddp.errors import UserError, shortened
from lookaround_ddp.files import regular, write_atomically

FILES, DIGEST = "files", "digest"  # in result.json: the checksums of other files, and its own


def write_result(config: Config, result: RunState) -> RunState:
    """Writes result.json into the folder of a run that has left everything else there.

    Adds the config's values, the SHA-256 of the other files, and one of itself. Returns what it holds, but the last.
    """
    run = Path(config.out)
    digests = {name: file_digest(run / name) for name in files_left(config)}
    whole = {**result, "config": config.identity(), FILES: digests}
    text = json.dumps({**whole, DIGEST: json_digest(whole)}, indent=1)
    write_atomically(run / RESULT, text.encode())
    return whole


def read_result(run: Path) -> RunState | None:
    """Returns what result.json of a run's folder holds; None if there is none.

    Raises:
        UserError: it is damaged, or was changed.
        OSError: it is no file.
    """
    path = run / RESULT
    try:
        result = json.loads(regular(path).read_text()) if path.exists() else None
        if result is None:
            return None
        if not isinstance(result, dict):
            raise ValueError("it is no result")
        digest = result.pop(DIGEST, None)
        if digest != json_digest(result) and (digest is not None or FILES in result):
            raise ValueError("its checksum differs")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): put back what the run wrote, or delete it, and the same command as before "
            "writes it anew"
        ) from None
    return result


def missing_files(run: Path, result: RunState) -> list[str]:
    """Returns the names of the files that a finished run left, by its result, and that are no longer there."""
    return [name for name in result.get(FILES, {}) if not (run / name).exists()]


def check_shipped(config: Config) -> None:
    """Raises UserError if a file in the folder of a run is not the one that it left, or is of another config.

    Args:
        config: that of config.yaml, as it is.
    """
    run = Path(config.out)
    result = read_result(run) or {}
    for name, values in _made_with(config, result):
        made = _identifying_values(values, run / name)
        if (name == BEST or name.startswith(CHECKPOINTS)) and grown(made, config) is not None:
            made = at_length_of(made, config.identity())  # it is of before the run was extended
        changes = list(changed_keys(made, config.identity()))
        if changes:
            raise UserError(
                f"{run / name} and {run / 'config.yaml'} are not of one run ({shortened('; '.join(changes))}): put "
                "back the one that was changed; other values to evaluate with go on the command line"
            )
    digests = result.get(FILES)
    for name in files_left(config):
        if digests is not None and (not isinstance(digests, dict) or digests.get(name) != file_digest(run / name)):
            raise UserError(
                f"{run / name} is not what the run left (its checksum differs): put that back, or delete it and "
                f"{RESULT}, and the same command as before makes both anew"
            )


def pipeline_before(run: Path) -> str | None:
    """Returns the `data.pipeline` that the run in a folder began with; None if no run is in it.

    Raises:
        UserError: result.json is damaged.
    """
    states = (inspect(run / CHECKPOINTS / str(iteration))[0] for iteration in checkpoints_in(run / CHECKPOINTS))
    made = next((state["config"] for state in states if "config" in state), (read_result(run) or {}).get("config"))
    return None if made is None else made["data"].get("pipeline", "workers")


def files_left(config: Config) -> list[str]:
    """Returns the names of the files that are there of a finished run, but for result.json."""
    run = Path(config.out)
    names = [MODEL, TRAJECTORY, BEST, *(str(path.relative_to(run)) for path in member_files(config)), METRICS]
    return [name for name in names if (run / name).exists()]


def _made_with(config: Config, result: RunState) -> Iterator[tuple[str, Any]]:
    """Yields the files of a run that tell its config's values, and these."""
    run = Path(config.out)
    if "config" in result:
        yield RESULT, result["config"]
    for name in files_left(config):
        if name != METRICS and "config" in (metadata := read_metadata(run / name)):
            yield name, metadata["config"]
    for iteration in checkpoints_in(run / CHECKPOINTS):
        if "config" in (state := inspect(run / CHECKPOINTS / str(iteration))[0]):
            yield f"{CHECKPOINTS}/{iteration}/run.json", state["config"]
            return


def _identifying_values(values: Any, path: Path) -> dict[str, Any]:
    """Returns a config's values, with those that are newer than the file at their defaults."""
    try:
        return made_before(values).identity()
    except UserError as error:
        raise UserError(f"{path} has the values of no config: {error}") from None
