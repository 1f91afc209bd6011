"""Checkpoints that are whole or not there: one file per part, one for the run, renamed into place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lookaround_ddp.checkpoint.digests import file_digest, json_digest
from lookaround_ddp.checkpoint.part_file import Part, load_part, restore_part
from lookaround_ddp.checkpoint.writer import Writer, snapshot
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError, explained
from lookaround_ddp.files import link, make_folder, regular, remove, sync, write, write_atomically

CHECKPOINTS = "checkpoints"  # the folder of a run that has them

RunState = dict[str, Any]  # of a run, JSON-able: what a checkpoint holds beside the replicas


@dataclass(frozen=True)
class PendingCheckpoint:
    """A checkpoint whose files are being written."""

    temporary: Path
    final: Path
    state: RunState
    writer: Writer


class Checkpoints:
    """The folder `checkpoints/` of a run.

    `<iteration>/replica-<j>.pt` hold the replicas, `trajectory*.pt` weight averages along time, `outer.pt` an outer
    optimizer of their mean, `run.json` everything else and the SHA-256 of each file. A checkpoint is written to a
    temporary folder, synced to disk, and renamed; the file LATEST beside it, for people and scripts, moves last.
    Threads write the files while the training goes on; one checkpoint at most is under way. The ranks rename it in
    their main threads, since threads must not exchange beside the training.

    Args:
        run: the run's folder, which all ranks see.
        keep: how many of the newest to keep.
        warn: called on rank 0 with each line that the user must see.
    """

    def __init__(self, run: Path, keep: int, world: World, warn: Callable[[str], None]) -> None:
        self.folder, self.keep, self.world, self.warn = run / CHECKPOINTS, keep, world, warn
        self.under_way: PendingCheckpoint | None = None
        self.seconds = 0.0  # that this rank took to write its files of the checkpoint before

    def begin(self, iteration: int, parts: Mapping[str, Part], state: RunState, extra: Sequence[Path] = ()) -> None:
        """Begins a checkpoint of the parts as they are now, after the one that is under way is whole; collective.

        The training may go on, and change them, while the files are written.

        Args:
            parts: file name -> what this rank is to write into it; each part is one rank's to write.
            state: JSON-able; rank 0's counts.
            extra: files to keep with it as they are now, if they are there; rank 0's count. Whoever replaces
                one of them renames a new one there.

        Raises:
            UserError: on every rank, if the folder, or a file of the checkpoint before, cannot be written; those before
                stay.
        """
        self.finish()
        temporary = self.folder / f".writing-{iteration}"
        with self.world.together():
            if self.world.main:
                make_folder(self.folder)
                for left in self.folder.glob(".writing-*"):  # a killed process left it
                    remove(left)
                temporary.mkdir()
                for path in extra:
                    if path.is_file():
                        link(path, temporary / path.name)
        state = snapshot({**state, "iteration": iteration})
        writer = Writer(temporary, parts, self.world.device)
        self.under_way = PendingCheckpoint(temporary, self.folder / str(iteration), state, writer)

    @property
    def written(self) -> bool:
        """Whether a checkpoint is under way whose files this rank has written: it is whole when all `finish` it."""
        return self.under_way is not None and self.under_way.writer.done

    def finish(self) -> bool:
        """Makes the checkpoint that is under way whole, if there is one: waits for its files, renames it; collective.

        Returns False, with a warning, if somebody has removed what was written of it, else True.

        Raises:
            UserError: on every rank, if a file cannot be written; the checkpoints before stay.
        """
        if self.under_way is None:
            return True
        temporary = self.under_way.temporary
        if self.world.share(not temporary.is_dir()):
            self.give_up()
            self.warn(f"warning: {temporary} was removed while a checkpoint was written into it: that one is lost")
            return False
        try:
            self._finish(self.under_way)
        except UserError:
            self.give_up()
            raise
        self.seconds = self.under_way.writer.seconds
        self.under_way = None
        return True

    def give_up(self) -> None:
        """Lets go of the checkpoint that is under way, if there is one: the run ends by an error. Not collective."""
        if self.under_way is not None:
            self.under_way.writer.give_up()
            if self.world.main:
                shutil.rmtree(self.under_way.temporary, ignore_errors=True)
            self.under_way = None

    def _finish(self, under_way: PendingCheckpoint) -> None:
        """Waits for the files of all ranks, and renames their folder; collective."""
        digests: dict[str, str] = {}
        with self.world.together():
            digests = under_way.writer.wait()
        digests = {name: digest for each in self.world.gather(digests) for name, digest in each.items()}
        with self.world.together():
            if self.world.main:
                self._rename(under_way, digests)

    def restore(
        self,
        parts: Mapping[str, Part],
        accept: Callable[[dict[str, Any]], None],
        iteration: int | None = None,
    ) -> dict[str, Any] | None:
        """Loads the newest whole checkpoint into the parts of this rank and returns its state; None if there is none.

        Collective. A checkpoint that is damaged anywhere is passed over, with a warning, for the one before.

        Args:
            parts: file name -> what this rank is to load from it.
            accept: sees a state before its parts are read, and raises UserError if they will not fit.
            iteration: of the only checkpoint to consider; None considers all.

        Raises:
            UserError: there are checkpoints, and all of them are damaged; one is whole, but holds what this package
                never writes; or what `accept` raises.
        """
        iterations = self.world.share(self.iterations()) if iteration is None else [iteration]
        for each in iterations:
            state, _ = self.inspect(each)
            if state:
                accept(state)
            state, problem = self.inspect(each, list(parts))
            problems = [text for text in self.world.gather(problem) if text]
            if not problems:
                with self.world.together():
                    for name, part in parts.items():
                        restore_part(self.folder / str(each) / name, part)
                return state
            self._pass_over(each, problems[0])
        if iterations:
            raise UserError(f"every checkpoint in {self.folder} is damaged: delete the folder to start anew")
        return None

    def iterations(self) -> list[int]:
        """Returns the iterations of the checkpoints, newest first."""
        return checkpoints_in(self.folder)

    def inspect(self, iteration: int, names: Sequence[str] = ()) -> tuple[dict[str, Any], str | None]:
        """Returns a checkpoint's state, and what is wrong with it or its files of these names: None if nothing is."""
        return inspect(self.folder / str(iteration), names)

    def newest_whole(self, names: Sequence[str]) -> int:
        """Returns the iteration of the newest checkpoint in which all ranks find their files whole; collective.

        Args:
            names: of the files that this rank needs.

        Raises:
            UserError: there is none.
        """
        for each in self.world.share(self.iterations()):
            problems = [text for text in self.world.gather(self.inspect(each, names)[1]) if text]
            if not problems:
                return each
            self._pass_over(each, problems[0])
        raise UserError(
            f"no whole checkpoint in {self.folder}: only the mean model can be evaluated (evaluate.replicas=false)"
        )

    def replica_state(self, replica: int, iteration: int) -> dict[str, Tensor]:
        """Returns the state dict of a replica's network from a checkpoint; not collective.

        Raises:
            UserError: it is damaged.
        """
        name = f"replica-{replica}.pt"
        problem = self.inspect(iteration, [name])[1]
        if problem is not None:
            raise UserError(f"checkpoint {iteration} in {self.folder} is damaged ({problem}): choose another")
        path = self.folder / str(iteration) / name
        state = load_part(path)
        try:
            found: dict[str, Tensor] = state.get("shown", state["model"])
        except (LookupError, AttributeError, TypeError):
            raise UserError(f"{path} holds no replica of this package") from None
        return found

    def _pass_over(self, iteration: int, problem: str) -> None:
        """Warns that a damaged checkpoint is not used."""
        self.warn(f"checkpoint {iteration} is damaged ({problem}): passed over for the one before")

    def _rename(self, under_way: PendingCheckpoint, digests: Mapping[str, str]) -> None:
        """Writes run.json, renames the folder, moves LATEST and deletes old checkpoints; on rank 0 alone."""
        temporary, final, state = under_way.temporary, under_way.final, {**under_way.state, "files": digests}
        missing = [name for name in digests if not (temporary / name).is_file()]
        if missing:
            raise UserError(f"{temporary} has no {missing[0]}: `out` must be a folder that all nodes share")
        text = json.dumps({**state, "digest": json_digest(state)}, indent=1)
        write(temporary / "run.json", lambda file: file.write(text.encode()))
        sync(temporary)
        remove(final)  # if there is one, it is damaged, or the run would have resumed from it
        temporary.rename(final)
        sync(self.folder)
        write_atomically(self.folder.parent / "LATEST", f"{final.name}\n".encode())
        found, newest = self.iterations(), int(final.name)
        later = [iteration for iteration in found if iteration > newest]  # they are damaged: `restore` passed over them
        for old in later + [iteration for iteration in found if iteration <= newest][self.keep :]:
            remove(self.folder / str(old))


def checkpoints_in(folder: Path) -> list[int]:
    """Returns the iterations of the checkpoints in a folder, newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isascii() and name.isdigit()), reverse=True)


def inspect(path: Path, names: Sequence[str] = ()) -> tuple[dict[str, Any], str | None]:
    """Returns the state of a checkpoint, and what is wrong with it or its files of these names: None if nothing is."""
    try:
        state = json.loads(regular(path / "run.json").read_text())
        digest = state.pop("digest")
        if digest != json_digest(state):
            return {}, "run.json: its checksum differs"
        for name in names:
            if file_digest(path / name) != state["files"].get(name):
                return {}, f"{name}: its checksum differs"
    except FileNotFoundError as error:
        return {}, f"{Path(error.filename).name} is missing"
    except OSError as error:
        return {}, explained(error)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        return {}, f"run.json: {error}"
    return state, None
