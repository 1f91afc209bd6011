"""The training losses of all replicas: gathered without waiting for the device, watched, averaged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lookaround_ddp.averaging import NotFiniteError
from lookaround_ddp.config import Config
from lookaround_ddp.data import Iterations
from lookaround_ddp.distributed import World


class Stopwatch:
    """Seconds of training, without the pauses for evaluation and saving, and of both; runs on over a resumed run.

    Args:
        elapsed: seconds of training before this start.
        total: seconds of both.
    """

    def __init__(self, elapsed: float = 0.0, total: float = 0.0) -> None:
        self.elapsed, self.before = elapsed, total
        self.since = self.began = time.perf_counter()
        self.spent: dict[str, float] = {}  # what a pause was for -> seconds since this start

    @contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Counts the block as no training."""
        began = time.perf_counter()
        self.elapsed += began - self.since
        try:
            yield
        finally:
            self.since = time.perf_counter()
            self.spent[what] = self.spent.get(what, 0.0) + self.since - began

    def seconds(self) -> float:
        """Returns the seconds of training."""
        return self.elapsed + time.perf_counter() - self.since

    def total(self) -> float:
        """Returns the seconds of everything."""
        return self.before + time.perf_counter() - self.began


class Losses:
    """Every rank counts its own replicas' losses; `check` and `since_last` are collective.

    Args:
        counted: iterations before the first that will be counted.
    """

    def __init__(self, config: Config, batches: Iterations, world: World, counted: int) -> None:
        self.config, self.batches, self.world, self.counted = config, batches, world, counted
        self.pending: list[Tensor] = []  # of the last iterations, shape (hosted,), still on the device
        self.gathered: list[Tensor] = []  # of all replicas since the last line, shape (iterations, d)

    def count(self, losses: Sequence[Tensor]) -> None:
        """Takes in an iteration's loss of each hosted replica. Not collective."""
        self.pending.append(torch.stack(list(losses)))
        self.counted += 1

    def since_last(self) -> Tensor:
        """Returns each replica's mean loss since the last call, shape (d,), over the iterations where it is finite."""
        self.check()
        losses, self.gathered = torch.cat(self.gathered).double(), []
        return losses.nan_to_num(0, 0, 0).sum(dim=0).div(losses.isfinite().sum(dim=0).clamp(min=1))

    def check(self) -> None:
        """Gathers the pending losses; waits for the device.

        Raises:
            NotFiniteError: naming the first iteration and replica whose loss is not finite. (In fp16 a
                loss may overflow while the scaler looks for its scale; only weights are checked then.)
        """
        mine = torch.stack(self.pending).cpu() if self.pending else torch.zeros(0, len(self.world.hosted))
        self.pending = []
        losses = torch.cat(self.world.gather(mine)[:: self.world.shards], dim=1)
        alone = max(0, self.batches.single.until - (self.counted - len(losses)))
        losses[:alone] = losses[:alone, :1]  # all replicas are the single network
        self.gathered.append(losses)
        bad = (~losses.isfinite()).nonzero().tolist()
        if bad and self.config.precision != "fp16":
            row, replica = bad[0]
            raise NotFiniteError(
                f"the loss of replica {replica} is not finite at iteration {self.counted - len(losses) + row + 1}: "
                f"lower optimizer.lr or set optimizer.clip_norm; the last checkpoint is kept"
            )

    def images(self, before: int, after: int) -> int:
        """Counts the images that all replicas saw in these iterations."""
        all_updates = sum(len(own) for own in self.config.replicas)
        images = 0
        for iteration in range(before, after):
            in_turn = iteration < self.batches.single.until and self.batches.single.in_turn
            images += len(self.batches.plan.indices(iteration, 0)) * (1 if in_turn else all_updates)
        return images
