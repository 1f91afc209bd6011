"""The average step on the replicas' tensors: at once, behind the next forward pass, or as a correction to come."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.averaging.checks import check_finite
from lookaround_ddp.averaging.collectives import NOTHING, average_
from lookaround_ddp.averaging.delayed import Corrections
from lookaround_ddp.averaging.overlap import Behind, Done, begin, can_hide, unseen
from lookaround_ddp.averaging.replica_group import Members, WeakGroup
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, averaged_tensors, layout_of


class AverageStep:
    """Which tensors of the replicas are averaged, and how. Every method that averages, or waits, is collective.

    Args:
        models: those that this rank hosts.
        members: the ranks.
        aside: the same ranks, with the group for what goes on beside other collectives.
        shards: see `Lookaround`.
        extra: names of buffers to average beside the running statistics.
        exact: see `Lookaround`.

    Attributes:
        distances: see `Lookaround`.
        behind: a step that goes on behind the next forward pass; None if there is none.
        corrections: those that are on their way, if a step was begun by `late`.
    """

    _shards = WeakGroup()

    def __init__(
        self,
        models: Sequence[nn.Module],
        members: Members,
        aside: Members,
        shards: dist.ProcessGroup | None,
        extra: Collection[str],
        *,
        exact: bool,
    ) -> None:
        self.models, self.extra = models, extra
        self.distances: Tensor | None = None
        self.behind: Behind | None = None
        self.corrections = Corrections(aside)
        self._members, self._aside, self._shards = members, aside, shards
        self._exact, self._warned = exact, False
        self._storage = FlatStorage(members)
        found = self._tensors()[0]
        self._buffers = len(found[0])  # how many are averaged
        layouts = [layout_of(tensor) for tensor in chain(*found)]
        self._layouts: list[Layout] = members.gather_objects(layouts)[0]

    def check_finite(self, step: int) -> None:
        """See `refusals.check_finite`."""
        check_finite(self._rows(), self._members, step)

    def at_once(self, step: int, measure: bool, write: Literal["mean", "first"] = "mean") -> None:
        """Returns when all have the mean.

        Args:
            step: the number of the replicas' last step.
            measure: see `Lookaround`.
            write: the mean into all replicas, or into this rank's first alone.
        """
        self._begin(step, measure, write, beside=False)

    def beside(self, step: int, measure: bool) -> None:
        """Behind the next forward pass, if it can be."""
        self._begin(step, measure, "mean", beside=self._can_go_aside())

    def late(self, step: int, measure: bool, delay: int) -> None:
        """The running statistics at once; of the parameters, what leads to corrections after so many steps."""
        tensors, layouts, first = self._tensors(), self._layouts, self._buffers
        if first:
            buffers = [buffers for buffers, _ in tensors]
            check_finite(buffers, self._members, step)
            average_(buffers, layouts[:first], self._members, exact=self._exact)
        self.corrections.begin(
            [parameters for _, parameters in tensors],
            layouts[first:],
            step,
            step + delay,
            exact=self._exact,
            measure=measure,
            aside=self._can_go_aside(),
        )

    @torch.no_grad()
    def correct(self) -> None:
        """Adds the corrections, which are due."""
        self._measured(self.corrections.add_to([parameters for _, parameters in self._tensors()]))

    def wait(self) -> None:
        """Until nothing goes on behind a forward pass."""
        if self.behind is not None:
            self._measured(self.behind.end())
            self.behind = None

    def _begin(self, step: int, measure: bool, write: Literal["mean", "first"], beside: bool) -> None:
        rows = self._rows()
        check_finite(rows, self._members, step)
        if self._exact:
            self._storage.hold(rows, self._layouts)
        measured = range(self._buffers, len(rows[0])) if measure else NOTHING
        members = self._aside if beside else self._members  # corrections may be on their way over the other group
        where = rows, self._layouts, members, self._storage

        def exchange(done: Done | None) -> Tensor | None:
            if done is None and beside:
                done = _nobody_waits  # the ranks meet for it, and another rank may hide
            return average_(*where, exact=self._exact, write=write, measured=measured, done=done)

        if beside and not self._must_wait():
            under_way = begin(exchange, len(rows[0]), _device(rows[0]), beside)
            self.behind = Behind(under_way, self.models, rows)
            if self._shards is not None:  # DDP hands buffers around before the model's own forward begins
                under_way.wait_for(range(self._buffers))
        else:
            self._measured(exchange(None))

    def _tensors(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Of each hosted model: buffers, parameters. Found anew each time, since a caller may have replaced them."""
        return [averaged_tensors(model, self.extra) for model in self.models]

    def _rows(self) -> list[list[Tensor]]:
        return [buffers + parameters for buffers, parameters in self._tensors()]

    def _can_go_aside(self) -> bool:
        return can_hide(self._members, _device(self._rows()[0]))

    def _must_wait(self) -> bool:
        """Whether nothing can be hidden behind the models' forward passes; warns of it once."""
        why = unseen(self.models)
        if why is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"hide=True has no effect with {why}, whose forward pass cannot wait for a weight: the average step is "
                "waited for, and the bits are the same",
                stacklevel=7,  # the caller of `Lookaround.step`
            )
        return why is not None

    def _measured(self, squares: Tensor | None) -> None:
        if squares is not None:
            self.distances = squares.sqrt()


def _device(row: Sequence[Tensor]) -> torch.device:
    return row[0].device if row else torch.device("cpu")


def _nobody_waits(_: int) -> None:
    """For a tensor that is done."""
