"""What a run shows and keeps: a live display or plain lines, metrics.jsonl, and what trackers get of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from lookaround_ddp.checkpoint import METRICS
from lookaround_ddp.config import Config
from lookaround_ddp.evaluation import score_text
from lookaround_ddp.files import open_in_place, with_filename, write_atomically
from lookaround_ddp.training.display import Display, duration
from lookaround_ddp.training.trackers import Trackers

FINAL = "final"  # the key of the last line's scores


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
        self.display: Display | None = None
        self.trackers: Trackers | None = None
        self.config = config

    def open(self, iteration: int) -> None:
        """Begins, or goes on after `iteration`: later lines of a run that was killed are dropped, and its last one."""
        if not self.main:
            return
        path = self.folder / METRICS
        lines, damaged = _lines(path)
        if damaged:
            self.say(f"{path}: {damaged} of its lines are damaged, and left out from now on")
        kept = [line for line in lines if line["iteration"] <= iteration and FINAL not in line]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.metrics = open_in_place(path, "a")
        self.trackers = Trackers(self.config, iteration, self.say)
        if self.console.is_terminal:
            self.display = Display(self.console, self.total, iteration)

    def reopen(self) -> None:
        """Goes on in a new file: the one before was removed."""
        self.metrics.close()
        self.metrics = open_in_place(self.folder / METRICS, "a")

    def say(self, text: str) -> None:
        if self.main:
            self.console.print(text, markup=False)

    def advance(self, iteration: int, epoch: float, rate: float, losses: Sequence[Tensor]) -> None:
        """Moves the bar on a terminal, if there is one; waits for no device."""
        if self.display is not None:
            self.display.advance(iteration, epoch, rate, losses)

    def train(self, line: Mapping[str, Any]) -> None:
        """Writes a line of training figures.

        They are iteration, epoch, lr, loss, distance, images_per_second, seconds (of training alone), total_seconds
        (with evaluating, measuring batch-norm anew, saving), eta.
        """
        if not self.main:
            return
        self._write(line)
        losses = " ".join(f"{loss:.3f}" for loss in line["loss"])
        several = len(line["loss"]) > 1  # a single network is its own mean
        distances = " ".join(f"{distance:.3f}" for distance in (several and line["distance"]) or [])
        parts = [f"iteration {line['iteration']}/{self.total}", f"epoch {line['epoch']:.2f}", f"lr {line['lr']:.4g}"]
        parts += [f"loss {losses}", *([f"distance {distances}"] if distances else [])]
        text = " | ".join([*parts, f"{line['images_per_second']:.0f} images/s", f"ETA {duration(line['eta'])}"])
        if self.display is not None:
            self.display.line(line)
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

    def final(self, line: Mapping[str, Any]) -> None:
        """Writes the last line: iteration, epoch, and as `final` the scores of everything that the run leaves."""
        if self.main:
            self._write(line)

    def close(self, error: BaseException | None) -> None:
        """Ends the display and the files, whatever happened; trackers learn what."""
        if self.display is not None:
            self.display.stop()
            self.display = None
        if self.main and hasattr(self, "metrics"):
            path = self.folder / METRICS
            with with_filename(path) if error is None else suppress(OSError):  # a line that had no room still has none
                self.metrics.close()
        if self.trackers is not None:
            self.trackers.finish(error)

    def _write(self, line: Mapping[str, Any]) -> None:
        with with_filename(self.folder / METRICS):
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
        if self.trackers is not None:
            self.trackers.log(_flat(line), step=line["iteration"])


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads the whole lines of a file, and how many are damaged; a last one that a kill cut short is left out."""
    whole, _, _ = path.read_bytes().rpartition(b"\n") if path.is_file() else (b"", b"", b"")
    texts = whole.splitlines()
    lines = [line for text in texts if (line := _parsed_line(text)) is not None]
    return lines, len(texts) - len(lines)


def _parsed_line(text: bytes) -> dict[str, Any] | None:
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
        elif isinstance(value, (int, float)):
            flat[f"{prefix}{name}"] = value
    return flat
