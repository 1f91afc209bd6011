"""`Replicas`: all ranks' replicas as they are, and the mean model that is formed of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lookaround_ddp.averaging.average_step import AverageStep
from lookaround_ddp.averaging.replica_group import WeakGroup, broadcast_
from lookaround_ddp.averaging.tensors import local_tensors, preserved


class Replicas:
    """The replicas of all ranks, to look at: whether they are finite, and what their mean is.

    `Lookaround` trains them in rounds. Every method is collective.

    Args:
        average: forms their mean.

    Attributes:
        steps: of each replica so far.
    """

    shards = WeakGroup()

    def __init__(self, average: AverageStep) -> None:
        self._average = average
        self.models, self.replica_group, self.shards = average.models, average.replica_group, average.shards
        self.extra_buffers, self.exact = average.extra, average.exact
        self.steps, self._lent = 0, False

    @property
    def replicas(self) -> int:
        """d, the number of replicas on all ranks."""
        return self.replica_group.replicas

    def look(self) -> None:
        """Raises what the last average step found, of which the host of a GPU has not waited to hear.

        All methods but `step` look; `step` does before the next average step.

        Raises:
            NotFiniteError, ValueError: on every rank: a replica could not be averaged, and nothing was written.
        """
        self._average.look()

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lends the mean model phi: this rank's first model, with the mean's weights while the block runs.

        It is the plain mean of the replicas as they are, also with `outer`. Collective; on leaving, the replica is
        restored bit for bit, integer and other buffers included. Buffers that are not averaged are replica 0's then.
        Of a model that torch.compile made, the module that it compiles is lent; the compiled one has phi's weights too.

        Raises:
            NotFiniteError: on every rank, if a replica is not finite.
            ValueError: on every rank: see `average`; another block lends the mean model already.
        """
        self._refuse_while_lent("averaged")
        self.synchronize_shards()
        model = self.models[0]
        with preserved([*model.parameters(), *model.buffers()]):
            with torch.no_grad():
                others = local_tensors(model, self.extra_buffers)
                self._average.average(self.steps, measure=False, write="first", others=others)
                self._average.look()
                broadcast_(others, self.replica_group.group)
            self._lent = True
            try:
                yield model
            finally:
                self._lent = False

    @torch.no_grad()
    def synchronize_shards(self) -> None:
        """Gives all ranks of a replica the buffers of the first; collective.

        DDP's ranks each keep statistics of their own share of the batch, until the next forward pass
        does the same.
        """
        self.look()
        for model in self.models:
            broadcast_(model.buffers(), self.shards)

    @torch.no_grad()
    def check_finite(self, step: int | None = None) -> None:
        """Raises NotFiniteError on all ranks, naming replica and step, if a weight is inf or NaN.

        Args:
            step: the number of the last step, if it has not been counted yet.
        """
        self.look()
        self._average.check(self.steps if step is None else step)

    def _refuse_while_lent(self, method: str) -> None:
        if self._lent:
            raise ValueError(
                f"{method}() inside averaged(): a replica has the mean's weights there; leave the block first"
            )
