"""Every file of a run by its name, and the lock that lets one training at a time into the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from lookaround_ddp.checkpoint.checkpoints import CHECKPOINTS
from lookaround_ddp.checkpoint.model_file import read_network
from lookaround_ddp.config import Config, as_begun, load_config
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.files import open_in_place, refuse_link, write_atomically

LOCK = ".lock"  # the file that a training holds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder against other processes, on this host or another that shares it, while the block runs.

    The operating system ends the lock with the process, however that ends; a process's children do not hold it.
    On a file system without locks nothing is locked.

    Raises:
        UserError: another process trains here (its number and host).
    """
    with open_in_place(folder / LOCK, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"{folder} is in use by {file.read().strip() or 'another process'}: wait for it or end it, "
                    "or give another `out`"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """Returns the config that a run folder was trained with; `overrides` may say where its data is now."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} is not a run folder: there is no config.yaml in it")
    config = as_begun(load_config(run / "config.yaml", overrides))
    return config.model_copy(update={"out": str(run)})  # as a value: `out=2024` would be read as a number


def run_of(path: Path) -> tuple[Path, int | None]:
    """Returns the run folder that a path names, and the iteration if it names one of its checkpoints."""
    named = path.parent.name == CHECKPOINTS and path.name.isascii() and path.name.isdigit()
    found = named and not (path / "config.yaml").exists()
    return (path.parent.parent, int(path.name)) if found else (path, None)


FOLDERS = (CHECKPOINTS, "members", "snapshots", "tensorboard", "wandb")  # of a run, for files


MODEL, TRAJECTORY, RESULT, METRICS = "model.safetensors", "trajectory.safetensors", "result.json", "metrics.jsonl"
BEST = "best.safetensors"  # the mean model of the best evaluation on held-out images


def member_files(config: Config) -> list[Path]:
    """Returns the files of the models whose mean prediction is the run's, in order; empty if it is one model's."""
    folder = Path(config.out)
    if config.snapshots:
        return [folder / "snapshots" / f"{cycle + 1}.safetensors" for cycle in range(config.schedule.cycles)]
    if config.average.k == "never":
        return [folder / "members" / f"{number}.safetensors" for number in range(len(config.replicas))]
    return []


def members_differ(config: Config) -> bool:
    """Returns whether the members are something else than the replicas, or the mean models, as they were trained."""
    return config.snapshots or config.trajectory.name != "none" or config.evaluate.recalibrate


def members(config: Config, device: torch.device) -> Iterator[nn.Module]:
    """Yields the models of these files, one after the other, on the device.

    Raises:
        UserError: a file is not there, or damaged.
    """
    for path in member_files(config):
        yield read_network(path, config.model)[0].to(device)


def refuse_foreign_config(folder: Path) -> None:
    """Raises UserError if the folder has a config.yaml and nothing that a run leaves beside it.

    Somebody wrote it, and a training would write the resolved config over its comments and bases.
    """
    left = (LOCK, "metrics.jsonl", "LATEST", CHECKPOINTS, MODEL, RESULT)
    if (folder / "config.yaml").exists() and not any((folder / name).exists() for name in left):
        raise UserError(
            f"{folder}/config.yaml is no run's, and a training would overwrite it: rename it, or give another `out`"
        )


PREEMPTED = "PREEMPTED"  # the file in the folder of a run that a signal ended


@contextmanager
def run_folder(config: Config, world: World) -> Iterator[None]:
    """Makes the run folder, and locks it while the block runs. Collective.

    Raises:
        UserError: it cannot be made, another training is in it, it has a config.yaml that no run wrote, or a folder in
            it is a link to elsewhere.
    """
    folder, there = Path(config.out), True
    with ExitStack() as held:
        with world.together():
            if world.main:
                refuse_foreign_config(folder)
                there = folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                for name in FOLDERS:
                    refuse_link(folder / name)
                held.enter_context(locked(folder))
        try:
            yield
        except UserError:
            if not there and [path.name for path in folder.iterdir()] == [LOCK]:  # what was refused leaves nothing
                (folder / LOCK).unlink()
                folder.rmdir()
            raise


def write_config(config: Config, world: World) -> None:
    """Writes the resolved config into the run folder; collective."""
    with world.together():
        if world.main:
            write_atomically(Path(config.out) / "config.yaml", config.text().encode())
