"""The average step on the replicas' rows: checks them, forms their mean, and says how far apart they were."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.averaging.exchange import Exchanged, average_matrices_
from lookaround_ddp.averaging.mean import Write
from lookaround_ddp.averaging.nodes import matrix_near, shared_parts
from lookaround_ddp.averaging.outer import OuterStep
from lookaround_ddp.averaging.replica_group import ReplicaGroup, WeakGroup, size_of
from lookaround_ddp.averaging.rows import Rows
from lookaround_ddp.averaging.tensors import Shapes, averaged_tensors, change_of, shapes_of
from lookaround_ddp.averaging.verdict import UnlikeReplicasError, Verdict


class AverageStep:
    """Averages the hosted replicas with those of the other ranks. Every method is collective.

    Args:
        models: those that this rank hosts.
        replica_group: the ranks.
        near: those among them that average by themselves, if replicas have nodes.
        shards: see `Lookaround`.
        extra: names of buffers to average in addition to the running statistics.
        exact: see `Lookaround`.

    Attributes:
        replica_group, near: the ranks.
        rows: where the averaged tensors lie.
        device: of the replicas.
        later: whether the host learns of replicas that cannot be averaged only when it asks (on a GPU).
        verdict: on the last average, until the host looks at it.
    """

    shards = WeakGroup()

    def __init__(
        self,
        models: Sequence[nn.Module],
        replica_group: ReplicaGroup,
        near: ReplicaGroup | None,
        shards: dist.ProcessGroup | None,
        extra: Collection[str],
        *,
        exact: bool,
    ) -> None:
        self.models, self.extra, self.exact = models, extra, exact
        self.verdict: Verdict | None = None
        self.replica_group, self.near, self.shards = replica_group, near, shards
        self.began_from: float | None = None  # a sum of all replicas' parameters, until they are compared with it
        self._compared = replica_group.replicas == 1
        self._before: Tensor | None = None  # sums of the hosted replicas, in nodes, since somebody looked at them all
        parts = replica_group.ranks if near is None else shared_parts(replica_group, len(near.teams[0]))
        self.rows = Rows(replica_group, parts * size_of(shards))
        self._shapes: Shapes = {}
        self._open(self.tensors())
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
        """Forgets what was before all replicas got the same weights, and lets an outer optimizer start anew.

        Args:
            begins: from these weights, not from the next mean.
        """
        tensors, fits = self._taken()
        if not fits:
            self._open(tensors)
        if not self._compared:
            self.began_from = self.rows.sums(of_parameters=True)[0].item()
        self._before = None
        if outer is not None:
            outer.begin(self.parameters()[0] if begins else None)

    def check(self, step: int, later: bool = False, *, compare: bool = False, others: Sequence[Tensor] = ()) -> Verdict:
        """Puts the tensors into their rows, and asks all ranks whether the replicas can be averaged.

        On a GPU a rank whose tensors alone have changed takes part in this average with its old rows, so that the
        others, which do not wait for the answer, do not wait for it either; nothing is written then.

        Args:
            step: the number of the replicas' last step.
            later: whether the host is not to wait for the answer.
            compare: whether to warn of replicas that have trained and are all the same, if nobody has compared them.
            others: further tensors that must be alike on all ranks.

        Raises:
            NotFiniteError, UnlikeReplicasError: see `Verdict.look`; also of the last average, if nobody has looked.
            UnlikeReplicasError: on all ranks: their models have changed alike, and not in their dtypes alone.
        """
        self.look()
        tensors, fits = self._taken()
        began_from = self.began_from if compare else None
        sums = self.rows.sums(of_parameters=began_from is not None)
        if self._before is not None:
            sums = sums + 0 * self._before  # not finite if they were not
        self._before = None
        self.verdict = Verdict(sums, self.rows.digests(tensors, others), self.replica_group, step, later, began_from)
        if not fits and self.verdict.alike():  # the other ranks' do not fit either
            if change := change_of(self._shapes, shapes_of(self.models[0])):
                self.verdict = None
                raise UnlikeReplicasError(
                    f"{change} since Lookaround was made: call restart(), which gives all replicas the first one's "
                    "weights, or make a new one; on all ranks"
                )
            self._open(tensors)
            self.verdict = Verdict(
                self.rows.sums(), self.rows.digests(tensors, others), self.replica_group, step, later
            )
        if compare:
            self.began_from, self._compared = None, True
        return self.verdict

    def _open(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Makes rows for the models as they are, and puts their tensors into them; collective."""
        self.rows.open(*averaged_tensors(self.models[0], self.extra))
        self.rows.take(tensors)
        self._shapes = shapes_of(self.models[0])

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
        self,
        step: int,
        *,
        measure: bool,
        write: Write = "mean",
        outer: OuterStep | None = None,
        others: Sequence[Tensor] = (),
    ) -> Tensor | None:
        """Checks and averages the replicas, and returns when all have the mean.

        Args:
            step: the number of the replicas' last step.
            measure: whether to return distances, as `exchange` does.
            write: see `mean.Task`.
            outer: moves the mean on.
            others: further tensors that must be alike on all ranks.

        Raises:
            ValueError: see `check` and `OuterStep.lay_out`; before any weight is touched.
        """
        verdict = self.check(step, self.later, compare=write == "mean", others=others)
        if self.replica_group.replicas == 1:
            return torch.zeros(1, dtype=torch.float64) if measure else None
        if outer is not None and outer.begun:
            outer.lay_out(self.rows)
        squares = self.exchange(self.replica_group, verdict.ok, write=write, measure=measure)
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
        sums = self.rows.sums()
        self._before = sums if self._before is None else self._before + sums
        sums = sums if fits else torch.full_like(sums, torch.nan)
        ok = Verdict(sums, self.rows.digests(tensors), self.near, step, later=True).ok
        if self.later or ok:
            matrices = [matrix_near(matrix, self.replica_group, self.near) for matrix in self.rows.matrices]
            average_matrices_(matrices, self.near, self.shards, ok=ok if self.later else None, exact=self.exact)
            self.rows.give()

    def exchange(
        self,
        replica_group: ReplicaGroup,
        ok: Tensor | None,
        *,
        measure: bool,
        write: Write = "mean",
        part: Exchanged = "all",
    ) -> Tensor | None:
        """Averages the rows.

        Args:
            replica_group: the ranks, with the process group to use.
            ok, write: see `mean.Task`.

        Returns:
            Distances of the replicas to their mean over the parameters, shape (replicas,), fp64, the same on every
            rank; None if they are not measured.
        """
        return average_matrices_(
            self.rows.matrices,
            replica_group,
            self.shards,
            ok=ok,
            exact=self.exact,
            measure=measure,
            write=write,
            part=part,
        )
