"""What a finished run left, kept in a folder of its own in the run's, when the run is made longer."""

from __future__ import annotations

from pathlib import Path

from lookaround_ddp.checkpoint.checkpoints import RunState
from lookaround_ddp.checkpoint.run_folder import BEST, METRICS, RESULT
from lookaround_ddp.checkpoint.shipped import files_left
from lookaround_ddp.config import Config
from lookaround_ddp.files import link, make_folder, remove, sync

CONFIG, CURVES = "config.yaml", "curves.png"
ENDED = "ended-"  # how the names of these folders begin


def set_aside(config: Config, result: RunState) -> Path:
    """Moves what a finished run left into RUN/ended-N, which reads as the run's folder did; returns that folder.

    N is the run's iterations. The run is one that has not finished then, and goes on with its record and its best
    model. Whenever the process is killed, all is there, and calling it again does the rest: the folder is whole or not
    there, and result.json leaves the run last.

    Raises:
        OSError: the folder cannot be written; the error has its name.
    """
    run = Path(config.out)
    folder = run / f"{ENDED}{result['iterations']}"
    names = [CONFIG, CURVES, *files_left(config), RESULT]
    kept = folder / RESULT
    if not kept.is_file() or kept.read_bytes() != (run / RESULT).read_bytes():  # else some have left the run already
        temporary = run / f".writing-{folder.name}"
        remove(temporary)
        for name in names:
            if (run / name).is_file():
                make_folder((temporary / name).parent)
                link(run / name, temporary / name)
        sync(temporary)
        remove(folder)
        temporary.rename(folder)
        sync(run)
    for name in names:
        if name not in (CONFIG, METRICS, BEST):
            (run / name).unlink(missing_ok=True)
    sync(run)
    return folder
