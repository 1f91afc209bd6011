"""The average step on the replicas' tensors: at once, overlapped with the next forward pass, or delayed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.averaging.checks import check_finite
from lookaround_ddp.averaging.collectives import NO_TENSORS, average_
from lookaround_ddp.averaging.delayed import Corrections
from lookaround_ddp.averaging.overlap import ForwardOverlap, OnTensorDone, begin, can_overlap, overlap_obstacle
from lookaround_ddp.averaging.replica_group import ReplicaGroup, WeakGroup
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, averaged_tensors, layout_of


class AverageStep:
    """Averages the replicas' tensors in one of three ways. Every method that averages, or waits, is collective.

    Args:
        models: those that this rank hosts.
        members: the ranks.
        overlap_members: the same ranks, with a process group of their own for exchanges that overlap other collectives.
        shards: see `Lookaround`.
        extra: names of buffers to average in addition to the running statistics.
        exact: see `Lookaround`.

    Attributes:
        distances: see `Lookaround`.
        overlap: the average step that overlaps the next forward pass; None if there is none.
        corrections: those that are on their way, if a step was begun by `delayed`.
    """

    _shards = WeakGroup()

    def __init__(
        self,
        models: Sequence[nn.Module],
        members: ReplicaGroup,
        overlap_members: ReplicaGroup,
        shards: dist.ProcessGroup | None,
        extra: Collection[str],
        *,
        exact: bool,
    ) -> None:
        self.models, self.extra = models, extra
        self.distances: Tensor | None = None
        self.overlap: ForwardOverlap | None = None
        self.corrections = Corrections(overlap_members)
        self._members, self._overlap_members, self._shards = members, overlap_members, shards
        self._exact, self._warned = exact, False
        self._storage = FlatStorage(members)
        found = self._tensors()[0]
        self._buffers = len(found[0])  # how many are averaged
        layouts = [layout_of(tensor) for tensor in chain(*found)]
        self._layouts: list[Layout] = members.gather_objects(layouts)[0]

    def check_finite(self, step: int) -> None:
        """Calls `checks.check_finite` on the averaged tensors."""
        check_finite(self._rows(), self._members, step)

    def at_once(self, step: int, measure: bool, write: Literal["mean", "first"] = "mean") -> None:
        """Averages, and returns when all replicas have the mean.

        Args:
            step: the number of the replicas' last step.
            measure: see `Lookaround`.
            write: "mean" overwrites every hosted replica, "first" only the first.
        """
        self._begin(step, measure, write, overlap=False)

    def overlapped(self, step: int, measure: bool) -> None:
        """Averages while the next forward pass runs, where that is possible; otherwise at once."""
        self._begin(step, measure, "mean", overlap=self._can_overlap())

    def delayed(self, step: int, measure: bool, delay: int) -> None:
        """Averages the running statistics at once, and begins the parameters' corrections, due `delay` steps later."""
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
            overlap=self._can_overlap(),
        )

    @torch.no_grad()
    def correct(self) -> None:
        """Adds the corrections, which must be due, to the parameters."""
        self._measured(self.corrections.add_to([parameters for _, parameters in self._tensors()]))

    def wait(self) -> None:
        """Waits until no average step overlaps a forward pass."""
        if self.overlap is not None:
            self._measured(self.overlap.end())
            self.overlap = None

    def _begin(self, step: int, measure: bool, write: Literal["mean", "first"], overlap: bool) -> None:
        """Begins the average step, and ends it too unless it can overlap the next forward pass."""
        rows = self._rows()
        check_finite(rows, self._members, step)
        if self._exact:
            self._storage.hold(rows, self._layouts)
        measured = range(self._buffers, len(rows[0])) if measure else NO_TENSORS
        # an average step that does not overlap keeps off the other group, where corrections may be under way
        members = self._overlap_members if overlap else self._members
        where = rows, self._layouts, members, self._storage

        def exchange(on_tensor_done: OnTensorDone | None) -> Tensor | None:
            if on_tensor_done is None and overlap:
                # every rank must synchronize per bucket if any rank overlaps, so this one gives a callback too
                on_tensor_done = _ignore_tensor
            return average_(*where, exact=self._exact, write=write, measured=measured, on_tensor_done=on_tensor_done)

        if overlap and not self._must_wait():
            under_way = begin(exchange, len(rows[0]), _device(rows[0]), overlap)
            self.overlap = ForwardOverlap(under_way, self.models, rows)
            if self._shards is not None:  # DDP broadcasts buffers before the model's own forward begins
                under_way.wait_for(range(self._buffers))
        else:
            self._measured(exchange(None))

    def _tensors(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Returns (buffers, parameters) of each hosted model; looked up each time, since a caller may replace them."""
        return [averaged_tensors(model, self.extra) for model in self.models]

    def _rows(self) -> list[list[Tensor]]:
        """Returns all averaged tensors of each hosted model, buffers first."""
        return [buffers + parameters for buffers, parameters in self._tensors()]

    def _can_overlap(self) -> bool:
        """Returns whether an exchange can run while this rank computes."""
        return can_overlap(self._members, _device(self._rows()[0]))

    def _must_wait(self) -> bool:
        """Returns whether the models' forward passes cannot wait for single weights; warns of it once."""
        why = overlap_obstacle(self.models)
        if why is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"hide=True has no effect with {why}, whose forward pass cannot wait for a weight: the average step is "
                "waited for, and the bits are the same",
                stacklevel=7,  # the caller of `Lookaround.step`
            )
        return why is not None

    def _measured(self, squares: Tensor | None) -> None:
        """Stores distances, from their squares, if they were measured."""
        if squares is not None:
            self.distances = squares.sqrt()


def _device(row: Sequence[Tensor]) -> torch.device:
    """Returns the device of a replica's tensors; the CPU if it has none."""
    return row[0].device if row else torch.device("cpu")


def _ignore_tensor(_: int) -> None:
    """Does nothing when a tensor is done."""
