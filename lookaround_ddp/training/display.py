"""The bar that a terminal shows while a run trains."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

EACH = 3  # of so many replicas each loss is shown, of more their mean


class Display:
    """It moves with every iteration; loss, speed and remaining time are those of the last line of the record.

    Until there is one, the remaining time follows from the iterations so far, and a CPU's loss is the last iteration's:
    a GPU is not waited for.

    Args:
        total: iterations of the run.
        done: iterations before this start.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.total, self.done, self.began = total, done, time.perf_counter()
        self.loss = self.speed = ""
        self.end: float | None = None
        words = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        self.progress = Progress(
            words, BarColumn(16), MofNCompleteColumn(), TextColumn("{task.fields[eta]}"), console=console
        )
        self.task = self.progress.add_task("", total=total, completed=done, eta="")
        self.progress.start()

    def advance(self, iteration: int, epoch: float, rate: float, losses: Sequence[Tensor]) -> None:
        """Shows an iteration that is over.

        Args:
            losses: of the hosted replicas in it.
        """
        now = time.perf_counter()
        if self.end is None:
            left = (self.total - iteration) * (now - self.began) / (iteration - self.done)
            if all(loss.device.type == "cpu" for loss in losses):
                self.loss = loss_text([float(loss) for loss in losses])
        else:
            left = max(0.0, self.end - now)
        parts = [f"epoch {epoch:.2f}", f"lr {rate:.3g}", self.loss, self.speed]
        text = " | ".join(part for part in parts if part)
        self.progress.update(self.task, completed=iteration, description=text, eta=f"ETA {duration(left)}")

    def line(self, line: Mapping[str, Any]) -> None:
        """Takes in a line of the record."""
        self.loss, self.speed = loss_text(line["loss"]), f"{line['images_per_second']:.0f} images/s"
        self.end = time.perf_counter() + line["eta"]

    def stop(self) -> None:
        """Leaves the bar as it is, with the time since this start in place of what was left."""
        self.progress.update(self.task, eta=f"{duration(time.perf_counter() - self.began)} in all")
        self.progress.stop()


def loss_text(losses: Sequence[float]) -> str:
    if len(losses) > EACH:
        return f"loss {sum(losses) / len(losses):.3f} (mean of {len(losses)})"
    return "loss " + " ".join(f"{loss:.3f}" for loss in losses)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
