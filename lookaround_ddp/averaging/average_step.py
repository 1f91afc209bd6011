"""The average step on the replicas' rows: checks them, forms their mean, and says how far apart they were."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.averaging import mean
from lookaround_ddp.averaging.collectives import gather_segments_, mean_by_all_reduce_, mean_by_collectives_
from lookaround_ddp.averaging.mean import Task, Write, mean_within_reach_
from lookaround_ddp.averaging.nodes import matrix_near, shared_parts
from lookaround_ddp.averaging.outer import OuterStep
from lookaround_ddp.averaging.replica_group import ReplicaGroup, WeakGroup, size_of, wire
from lookaround_ddp.averaging.rows import Matrix, Rows
from lookaround_ddp.averaging.tensors import averaged_tensors
from lookaround_ddp.averaging.verdict import Verdict

Part = Literal["all", "buffers"]


class AverageStep:
    """Averages the hosted replicas with those of the other ranks. Every method is collective.

    Args:
        models: those that this rank hosts.
        members: the ranks.
        near: those among them that average by themselves, if replicas have nodes.
        shards: see `Lookaround`.
        extra: names of buffers to average in addition to the running statistics.
        exact: see `Lookaround`.

    Attributes:
        members, near: the ranks.
        rows: where the averaged tensors lie.
        device: of the replicas.
        later: whether the host learns of replicas that cannot be averaged only when it asks (on a GPU).
        verdict: on the last average, until the host looks at it.
    """

    shards = WeakGroup()

    def __init__(
        self,
        models: Sequence[nn.Module],
        members: ReplicaGroup,
        near: ReplicaGroup | None,
        shards: dist.ProcessGroup | None,
        extra: Collection[str],
        *,
        exact: bool,
    ) -> None:
        self.models, self.extra, self.exact = models, extra, exact
        self.verdict: Verdict | None = None
        self.members, self.near, self.shards = members, near, shards
        self.were_finite: Tensor | None = None  # the hosted replicas, in nodes, since somebody looked at them all
        parts = members.ranks if near is None else shared_parts(members, len(near.teams[0]))
        self.rows = Rows(members, parts * size_of(shards))
        self.rows.open(*averaged_tensors(models[0], extra))
        self.rows.take(self.tensors())
        self.device = self.rows.matrices[0].own.device if self.rows.matrices else torch.device("cpu")
        self.later = self.device.type == "cuda"

    def tensors(self) -> list[list[Tensor]]:
        """Returns the averaged tensors of each hosted model, parameters first; looked up anew each time."""
        found = (averaged_tensors(model, self.extra) for model in self.models)
        return [[*parameters, *buffers] for parameters, buffers in found]

    def parameters(self) -> list[list[Tensor]]:
        """Returns the averaged parameters of each hosted model."""
        return [averaged_tensors(model, self.extra)[0] for model in self.models]

    def restart(self, outer: OuterStep | None, begins: bool) -> None:
        """Forgets what was bad before all replicas got the same weights, and lets an outer optimizer start anew.

        Args:
            begins: from these weights, not from the next mean.
        """
        self.were_finite = None
        if outer is not None:
            outer.begin(self.parameters()[0] if begins else None)

    def check(self, step: int, later: bool = False) -> Verdict:
        """Puts the tensors into their rows, and asks all ranks whether the replicas can be averaged.

        On a GPU a rank whose tensors alone have changed takes part in this average with its old rows, so that the
        others, which do not wait for the answer, do not wait for it either; nothing is written then.

        Args:
            step: the number of the replicas' last step.
            later: whether the host is not to wait for the answer.

        Raises:
            FloatingPointError, UnlikeReplicasError: see `Verdict.look`; also of the last average, if nobody has looked.
        """
        self.look()
        tensors, fits = self._taken()
        finite = self.rows.finite() if self.were_finite is None else self.rows.finite() * self.were_finite
        self.were_finite = None
        self.verdict = Verdict(finite, self.rows.digests(tensors), self.members, step, later)
        if not fits and self.verdict.alike():  # the other ranks' do not fit either
            self.rows.open(*averaged_tensors(self.models[0], self.extra))
            self.rows.take(tensors)
            self.verdict = Verdict(self.rows.finite(), self.rows.digests(tensors), self.members, step, later)
        return self.verdict

    def _taken(self) -> tuple[list[list[Tensor]], bool]:
        """Puts the tensors into their rows if they fit, as `Rows.fit` says; returns them, and whether they do."""
        tensors = self.tensors()
        fits = self.rows.fit(tensors)
        if fits:
            self.rows.take(tensors)
        else:
            self.rows.let_go()
        return tensors, fits

    def look(self) -> None:
        """Raises what the last average found, if the host does not know it yet."""
        if self.verdict is not None:
            verdict, self.verdict = self.verdict, None
            verdict.look()

    def average(
        self, step: int, *, measure: bool, write: Write = "mean", outer: OuterStep | None = None
    ) -> Tensor | None:
        """Checks and averages the replicas, and returns when all have the mean.

        Args:
            step: the number of the replicas' last step.
            measure: whether to return distances, as `exchange` does.
            write: see `mean.Task`.
            outer: moves the mean on.

        Raises:
            ValueError: see `OuterStep.lay_out`; before any weight is touched.
        """
        verdict = self.check(step, self.later)
        if self.members.replicas == 1:
            return torch.zeros(1, dtype=torch.float64) if measure else None
        if outer is not None and outer.begun:
            outer.lay_out(self.rows)
        squares = self.exchange(self.members, verdict.ok, write=write, measure=measure)
        if outer is not None and outer.begun:
            outer.step(self.rows, verdict.ok)
        self.rows.give()
        if outer is not None and not outer.begun:
            self.look()  # whether it is a mean
            outer.begin(self.parameters()[0])
        return squares

    def average_nodes(self, step: int) -> None:
        """Averages the replicas of each node, without a message to any other.

        Where one cannot be averaged, its neighbours stay as they are; the next check of all tells all ranks of it.
        """
        assert self.near is not None
        tensors, fits = self._taken()
        finite = self.rows.finite()
        self.were_finite = finite if self.were_finite is None else self.were_finite * finite
        ok = Verdict(finite * int(fits), self.rows.digests(tensors), self.near, step, later=True).ok
        if self.later or ok:
            matrices = [matrix_near(matrix, self.members, self.near) for matrix in self.rows.matrices]
            average_matrices_(matrices, self.near, self.shards, ok=ok if self.later else None, exact=self.exact)
            self.rows.give()

    def exchange(
        self,
        members: ReplicaGroup,
        ok: Tensor | None,
        *,
        measure: bool,
        write: Write = "mean",
        part: Part = "all",
    ) -> Tensor | None:
        """Averages the rows.

        Args:
            members: the ranks, with the process group to use.
            ok, write: see `mean.Task`.

        Returns:
            Distances of the replicas to their mean over the parameters, shape (replicas,), fp64, the same on every
            rank; None if they are not measured.
        """
        return average_matrices_(
            self.rows.matrices,
            members,
            self.shards,
            ok=ok,
            exact=self.exact,
            measure=measure,
            write=write,
            part=part,
        )


def average_matrices_(
    matrices: Sequence[Matrix],
    members: ReplicaGroup,
    shards: dist.ProcessGroup | None,
    *,
    ok: Tensor | None = None,
    exact: bool = True,
    measure: bool = False,
    write: Write = "mean",
    part: Part = "all",
) -> Tensor | None:
    """Averages rows of one or more dtypes; see `AverageStep.exchange`. Collective."""
    total: Tensor | None = None
    for matrix in matrices:
        own = matrix.own
        start, stop = matrix.buffers if part == "buffers" else 0, matrix.columns
        low, high = _segment(start, stop, shards)
        blocks = -(-matrix.columns // mean.BLOCK_ELEMENTS)
        squares = own.new_zeros(blocks, members.replicas, dtype=torch.float64) if measure else None
        way = mean_within_reach_ if len(matrix.rows) == members.replicas else mean_by_collectives_
        way = way if exact else mean_by_all_reduce_
        way(matrix, members, Task(low, high, write, None if ok is None else ok.to(own.device), squares))
        if shards is not None:
            rows = own[:1] if write == "first" else own
            gather_segments_(rows[:, start:stop], rows[:, low:high], shards, wire(shards, own.device))
        if squares is not None:
            measured = _summed(squares, members, shards)
            total = measured if total is None else total + measured.to(total.device)
    if measure and total is None:
        return torch.zeros(members.replicas, dtype=torch.float64)
    return total


def _segment(start: int, stop: int, shards: dist.ProcessGroup | None) -> tuple[int, int]:
    """Returns the columns that this rank of a replica averages, out of those from start to stop."""
    if shards is None:
        return start, stop
    size = (stop - start) // size_of(shards)
    return start + dist.get_rank(shards) * size, start + (dist.get_rank(shards) + 1) * size


def _summed(squares: Tensor, members: ReplicaGroup, shards: dist.ProcessGroup | None) -> Tensor:
    """Sums squared distances of shape (blocks, replicas), each of which some rank has measured; collective."""
    device = squares.device
    for group in (members.group, shards):
        if size_of(group) > 1:
            squares = squares.to(wire(group, device))
            dist.all_reduce(squares, group=group)  # but for cut blocks each number is zero on all ranks but one
    squares = squares.to(device)
    if device.type != "cpu":
        return squares.sum(0)
    total = torch.zeros(members.replicas, dtype=torch.float64)
    for row in squares:  # in their order, so the bits do not depend on which rank measured which
        total += row
    return total
