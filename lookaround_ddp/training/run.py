"""What a training consists of, and where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.checkpoint import Checkpoints, RunState
from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, Iterations, load
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluation import Evaluator
from lookaround_ddp.optim import Trajectory
from lookaround_ddp.training.progress import Losses, Stopwatch
from lookaround_ddp.training.record import Record
from lookaround_ddp.training.replica import Replica, shown

EVALUATING, SAVING = "evaluating", "saving"  # pauses of the stopwatch that come as often as the config says


@dataclass
class Run:
    """The parts of a training. What is done with them stands in the files beside this one, as functions of a run."""

    config: Config
    dataset: Dataset
    world: World
    batches: Iterations
    replicas: list[Replica]  # those that this rank hosts
    around: Lookaround
    weight_averages: list[Trajectory]  # along time: of the mean model, or of each hosted replica
    test: Evaluator
    validation: Evaluator | None  # None: no images are held out
    record: Record
    checkpoints: Checkpoints
    losses: Losses
    watch: Stopwatch
    start: str  # digest of the weights that the run began with
    first: int = 0  # iterations before this start
    iteration: int = 0  # finished so far, but for their average step
    scores: RunState = field(default_factory=dict)  # the last evaluation
    best: RunState | None = None
    last_logged: tuple[int, float] = (0, 0.0)  # iteration and seconds at the last line of the record
    last_checked_epoch: int = 0  # after which the ranks' means were compared
    warned_of_saving: bool = False
    locks: ExitStack = field(default_factory=ExitStack)  # of a folder that was made again

    @property
    def per_epoch(self) -> int:
        return self.batches.plan.iterations

    @property
    def total(self) -> int:
        """Iterations of the whole run."""
        return self.config.length(self.per_epoch)

    @property
    def single_phase_end(self) -> int:
        """The iteration up to which a single network trains, from which the replicas start; 0: there is no such."""
        return self.batches.single.until


def load_batches(run: Run, iterations: Sequence[int] | range) -> Iterator[list[list[Batch]]]:
    """Yields the hosted replicas' batches of each of these iterations."""
    return load(run.batches, iterations, run.batches.workers, run.world.device)


def evaluation_weights(run: Run) -> AbstractContextManager[None]:
    """Gives the hosted replicas the weights to evaluate (with Lookahead the slow ones) while the block runs."""
    return shown(run.replicas)


def due(run: Run, epochs: float) -> bool:
    """Returns whether what happens every so many epochs, and at the end, happens after the run's iteration."""
    return times_due(run, epochs, run.iteration - 1, run.iteration) == 1


def times_due(run: Run, epochs: float, after: int, until: int) -> int:
    """Counts how often what happens every so many epochs, and at the end, happens in iterations after + 1 to until."""
    period = max(1, round(epochs * run.per_epoch))
    return until // period - after // period + (until == run.total and until % period != 0)
