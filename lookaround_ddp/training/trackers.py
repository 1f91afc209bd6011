"""Where figures go beside metrics.jsonl, if asked: Weights & Biases, TensorBoard. Neither may end a training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from lookaround_ddp.config import Config
from lookaround_ddp.errors import Preempted
from lookaround_ddp.files import write_atomically

FINISH_SECONDS = 60  # that Weights & Biases may take in the end to send what is left, and would take for ever otherwise


class Tracker(Protocol):
    name: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes in figures of a step; a step may have several calls, one after the other."""

    def finish(self, error: BaseException | None) -> None:
        """Ends it, well or with what ended the training."""


class Trackers:
    """Those of a run; one that fails is left out from then on, with a line.

    Args:
        say: called with each line that the user must see.
    """

    def __init__(self, config: Config, iteration: int, say: Callable[[str], None]) -> None:
        self.folder, self.say = Path(config.out), say
        self.trackers: list[Tracker] = []
        if config.record.wandb != "disabled":
            self._start("wandb", lambda: WandB(config, config.record.wandb, say))
        if config.record.tensorboard:
            self._start("tensorboard", lambda: TensorBoard(self.folder, iteration))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step))

    def finish(self, error: BaseException | None) -> None:
        self._each(lambda tracker: tracker.finish(error))

    def _start(self, name: str, start: Callable[[], Tracker]) -> None:
        try:
            self.trackers.append(start())
        except Exception as error:  # whatever a tracker raises, it must not end a training
            self.say(f"{name}: {error}: this run is recorded in {self.folder} alone")

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                call(tracker)
            except Exception as error:  # as above
                self.say(f"{tracker.name}: {error}: recording goes on in {self.folder} alone")
                self.trackers.remove(tracker)


class WandB:
    """A run of Weights & Biases that a resumed training goes on with."""

    name = "wandb"

    def __init__(self, config: Config, mode: Literal["online", "offline", "disabled"], say: Callable[[str], None]):
        if mode == "online":
            try:
                self.run = _start_wandb(config, mode)
                return
            except Exception as error:  # no key, no network
                kept = f"`wandb sync {config.out}/wandb/offline-*` sends it"
                say(f"wandb: {error}: offline from now on; {kept}")
        self.run = _start_wandb(config, "offline")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self, error: BaseException | None) -> None:
        if isinstance(error, Preempted):
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if error is None else 1)


def _start_wandb(config: Config, mode: Literal["online", "offline"]) -> Any:
    import wandb  # half a second, and only those who track need it

    os.environ.setdefault("WANDB_FINISH_TIMEOUT", f"{FINISH_SECONDS}")
    if mode == "online" and not wandb.login(prompt=False, verify=False):  # `init` would ask, and the other ranks wait
        raise RuntimeError("no API key; `wandb login` stores one")
    folder = Path(config.out)
    return wandb.init(
        project=config.record.project,
        name=folder.name,
        id=_wandb_id(folder),
        resume="allow",
        dir=str(folder),
        mode=mode,
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(init_timeout=10),
    )


def _wandb_id(folder: Path) -> str:
    """Returns the id that this run folder got when it was first tracked."""
    path = folder / "wandb-id"
    if not path.is_file():
        write_atomically(path, f"{folder.name}-{time.time_ns():x}"[-64:].encode())
    return path.read_text()


class TensorBoard:
    """Event files in the run's folder; what a killed run wrote after `iteration` is not shown any more."""

    name = "tensorboard"

    def __init__(self, folder: Path, iteration: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # only those who use it have the package
        except ImportError as error:
            raise RuntimeError(f"{error}; `pip install tensorboard` brings the package") from None
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a process that is killed leaves what it was told

    def finish(self, error: BaseException | None) -> None:
        self.writer.close()
