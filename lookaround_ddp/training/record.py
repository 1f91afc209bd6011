"""What a run shows and keeps: a live display or plain lines, metrics.jsonl, and Weights & Biases if asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lookaround_ddp.checkpoint import METRICS
from lookaround_ddp.config import Config
from lookaround_ddp.errors import Preempted
from lookaround_ddp.evaluation import score_text
from lookaround_ddp.files import open_in_place, with_filename, write_atomically

FINISH_SECONDS = 60  # that Weights & Biases may take in the end to send what is left, and would take for ever otherwise


class Record:
    """The record of a run on rank 0; on other ranks every call does nothing.

    Args:
        config: the run's config.
        main: whether this is rank 0.
        total: iterations of the run.
        console: where to show progress; by default standard error.
    """

    def __init__(self, config: Config, main: bool, total: int, console: Console | None = None) -> None:
        self.main, self.total = main, total
        self.folder = Path(config.out)
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self.progress: Progress | None = None
        self.tracker: Any = None
        self.config = config
        self.warned = False

    def open(self, iteration: int) -> None:
        """Begins, or goes on after `iteration`: later lines of a run that was killed are dropped."""
        if not self.main:
            return
        path = self.folder / METRICS
        lines, damaged = _lines(path)
        if damaged:
            self.say(f"{path}: {damaged} of its lines are damaged, and left out from now on")
        kept = [line for line in lines if line["iteration"] <= iteration]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.metrics = open_in_place(path, "a")
        self.tracker = self._start_wandb(self.config.record.wandb)
        if self.console.is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task("", total=self.total, completed=iteration)
            self.progress.start()

    def reopen(self) -> None:
        """Goes on in a new file: the one before was removed."""
        self.metrics.close()
        self.metrics = open_in_place(self.folder / METRICS, "a")

    def say(self, text: str) -> None:
        if self.main:
            self.console.print(text, markup=False)

    def train(self, line: Mapping[str, Any]) -> None:
        """Writes a line of training figures: iteration, epoch, lr, loss, distance, images_per_second, seconds, eta."""
        if not self.main:
            return
        self._write(line)
        losses = " ".join(f"{loss:.3f}" for loss in line["loss"])
        several = len(line["loss"]) > 1  # a single network is its own mean
        distances = " ".join(f"{distance:.3f}" for distance in (several and line["distance"]) or [])
        parts = [f"iteration {line['iteration']}/{self.total}", f"epoch {line['epoch']:.2f}", f"lr {line['lr']:.4g}"]
        parts += [f"loss {losses}", *([f"distance {distances}"] if distances else [])]
        text = " | ".join([*parts, f"{line['images_per_second']:.0f} images/s", f"ETA {duration(line['eta'])}"])
        if self.progress is not None:
            self.progress.update(
                self.task,
                completed=line["iteration"],
                description=f"loss {losses} | {line['images_per_second']:.0f} images/s",
            )
        else:
            self.say(text)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Writes a line of scores: iteration, epoch, and those of mean, validation, trajectory, ensemble, replicas."""
        if not self.main:
            return
        self._write(line)
        parts = [f"{name} {score_text(line[name])}" for name in ("mean", "validation", "trajectory") if line.get(name)]
        if line.get("ensemble"):
            parts.append(f"ensemble {score_text(line['ensemble']['logits'])}")
        if line.get("replicas"):
            parts.append("replicas " + " ".join(f"{score['top1']:.2f}" for score in line["replicas"]))
        self.say(f"epoch {line['epoch']:.4g} | " + " | ".join(parts))

    def close(self, error: BaseException | None) -> None:
        """Ends the display and the files, whatever happened; Weights & Biases learns what."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
        if self.main and hasattr(self, "metrics"):
            path = self.folder / METRICS
            with with_filename(path) if error is None else suppress(OSError):  # a line that had no room still has none
                self.metrics.close()
        if isinstance(error, Preempted):
            self._wandb(lambda: self.tracker.mark_preempting())
        self._wandb(lambda: self.tracker.finish(exit_code=0 if error is None else 1))

    def _write(self, line: Mapping[str, Any]) -> None:
        with with_filename(self.folder / METRICS):
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
        self._wandb(lambda: self.tracker.log(_flat(line), step=line["iteration"]))

    def _start_wandb(self, mode: Literal["online", "offline", "disabled"]) -> Any:
        """Starts a wandb run that a resumed training goes on with; returns None if there is to be none, or it fails."""
        settings = self.config.record
        if mode == "disabled":
            return None
        try:
            import wandb  # half a second, and only those who track need it

            os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{FINISH_SECONDS}")
            if mode == "online" and not wandb.api.api_key:  # it would ask for one, and the other ranks would wait
                raise RuntimeError("no API key; `wandb login` stores one")
            return wandb.init(
                project=settings.project,
                name=self.folder.name,
                id=_wandb_id(self.folder),
                resume="allow",
                dir=str(self.folder),
                mode=mode,
                config=self.config.model_dump(mode="json"),
                settings=wandb.Settings(init_timeout=10),
            )
        except Exception as error:  # whatever a tracker raises, it must not end a training
            if mode == "online":
                self.say(f"wandb: {error}: offline from now on; `wandb sync {self.folder}/wandb/offline-*` sends it")
                return self._start_wandb("offline")
            self.say(f"wandb: {error}: this run is recorded in {self.folder} alone")
            return None

    def _wandb(self, call: Any) -> None:
        if self.tracker is None:
            return
        try:
            call()
        except Exception as error:  # as above
            self.say(f"wandb: {error}: recording goes on in {self.folder} alone")
            self.tracker = None


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads the whole lines of a file, and how many are damaged; a last one that a kill cut short is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.is_file() else (b"", b"", b"")
    texts = whole.splitlines()
    lines = [line for text in texts if (line := _line(text)) is not None]
    return lines, len(texts) - len(lines)


def _line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _wandb_id(folder: Path) -> str:
    """Returns the id that this run folder got when it was first tracked."""
    path = folder / "wandb-id"
    if not path.is_file():
        write_atomically(path, f"{folder.name}-{time.time_ns():x}"[-64:].encode())
    return path.read_text()
