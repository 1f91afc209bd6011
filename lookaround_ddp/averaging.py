"""`Lookaround`: k steps around, 1 step average, for any training loop (arXiv 2306.07684, Algorithm 1).

It needs torch alone. A replica is a model that a rank trains with an optimizer and data of its own;
`Lookaround` starts all replicas from one point, counts their steps, and after every k-th replaces the
replicas by their mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.exchange import NOTHING, average_, broadcast_
from lookaround_ddp.flat import FlatStorage
from lookaround_ddp.hidden import Behind, Done, aside, begin, can_hide, unseen
from lookaround_ddp.late import Corrections
from lookaround_ddp.layout import Layout, layout_of
from lookaround_ddp.members import Members
from lookaround_ddp.refusals import check, check_finite, same_states
from lookaround_ddp.structure import as_list, averaged_tensors, forget, local_tensors


class Lookaround:
    """Replaces the replicas' weights by their mean after every k steps of all replicas.

        around = Lookaround(model, k=5)
        for images, labels in loader:
            optimizer.zero_grad()
            loss_fn(model(images), labels).backward()
            optimizer.step()
            around.step()

    Creating it is collective: parameters and buffers of all replicas become those of the first one.

    The mean is over floating-point (and complex) parameters and the running statistics of norm layers,
    summed in fp64 in replica order and rounded once: the same bits on every rank, for any number of
    ranks. Other buffers stay with their replica. `step` counts *attempted* steps, so a step that a
    `GradScaler` skips on one rank does not shift that rank's averages.

    Args:
        models: the model of this rank, or the models that this rank hosts, as many on every rank. Replica
            numbers run through the ranks: rank 0's models first.
        k: steps in a round; None never averages (independent replicas).
        start: steps before the first round begins.
        group: the ranks to average over; by default all, or this process alone where none are set up.
        beside: a second group of the same ranks, for `hide` and `delay`; needed only where `group` leaves out some.
        shards: where several ranks train one replica with DDP, the group of these ranks; a replica's
            buffers are then those of the group's first rank.
        buffers: names of further floating-point buffers to average.
        exact: False sums in the backend's own order: on one machine and one number of ranks that is still
            deterministic for most backends, but not the same for another number of ranks.
        optimizers: the models' optimizers, for an `optimizer_state` other than "local".
        optimizer_state: what the average step does with it: "local" leaves it with its replica (the
            paper's code), "average" averages it too, "reset" clears it.
        measure: keep the distances of the replicas to their mean in `distances` at each average step; may be
            set anew before any of them, on all ranks alike.
        hide: let the average step go on behind the next forward pass, in which each tensor is waited for when a
            function of torch first uses it. The bits are the same. `state_dict` of the model, and all methods
            here, wait too; other readers of the weights call `wait` first. A forward pass through the model
            itself, or DDP around it, must follow each step. Without effect, and so synchronous: GPUs without NCCL, a
            single rank; also, with a warning, modules that run as CUDA graphs, TorchScript or compiled.
        delay: another algorithm, for slow networks: the mean of step t arrives so many steps later, as a
            correction, theta_j += phi_t - theta_j,t. Less than k. Running statistics do not wait.

    Attributes:
        steps: steps of each replica so far.
        distances: L2 distance of each replica's parameters to the mean at the last average step that measured
            it, shape (d,), fp64; None before the first.

    Raises:
        ValueError: on all ranks, whichever of them it concerns: k < 1, start < 0, a model that is wrapped in
            DDP or FSDP or has lazy parameters, hosted models that share tensors, models or ranks that differ
            in structure or settings, an unknown name in `buffers`, a delay of k steps or more.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        k: int | None = 5,
        *,
        start: int = 0,
        group: dist.ProcessGroup | None = None,
        beside: dist.ProcessGroup | None = None,
        shards: dist.ProcessGroup | None = None,
        buffers: Iterable[str] = (),
        exact: bool = True,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        optimizer_state: Literal["local", "average", "reset"] = "local",
        measure: bool = False,
        hide: bool = False,
        delay: int = 0,
    ) -> None:
        self.models = as_list(models)
        self.hide, self.delay = hide, delay
        self.k, self.start, self.exact, self.measure = k, start, exact, measure
        self.extra_buffers = frozenset(buffers)
        self.optimizers, self.optimizer_state = list(optimizers), optimizer_state
        self.shards = shards
        self.steps = 0
        self.distances: Tensor | None = None
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        self.members = Members(group, hosted=len(self.models))
        check(
            self.models,
            self.members,
            len(self.optimizers),
            {
                "k": k,
                "start": start,
                "delay": delay,
                "optimizer_state": optimizer_state,
                "buffers": sorted(self.extra_buffers),
                "exact": exact,
                "measure": measure,
                "hide": hide,
            },
        )
        found = self._averaged_tensors()[0]
        self._buffers = len(found[0])  # how many are averaged
        layouts = [layout_of(tensor) for tensor in chain(*found)]
        self._layouts: list[Layout] = self.members.gather_objects(layouts)[0]
        self._aside = aside(self.members, beside) if hide or delay else self.members
        self._behind: Behind | None = None
        self._said = False  # that hide has no effect
        self._storage = FlatStorage(self.members)
        self.corrections = Corrections(self._aside)
        self.restart()

    @property
    def replicas(self) -> int:
        """d, the number of replicas on all ranks."""
        return self.members.replicas

    def due(self, steps: int) -> bool:
        """Whether an average step follows step number `steps`, counted from 1."""
        return self.k is not None and steps > self.start and (steps - self.start) % self.k == 0

    def step(self) -> bool:
        """Counts a step of every replica; the last of a round is followed by the average step.

        Call it on every rank after each step, attempted or skipped. Returns whether it averaged, or began to.

        Raises:
            RuntimeError: an average step is still under way (`hide`), and no forward pass has waited for it.
            FloatingPointError, ValueError: see `average`.
        """
        if self._behind is not None and not self._behind.over:
            raise RuntimeError(
                "a step without a forward pass through the model, which would have waited for its weights: "
                "call the model itself, not a compiled copy or a part of it, or create Lookaround with hide=False"
            )
        self.wait()
        self.steps += 1
        if self.corrections.due == self.steps:
            self._correct()
        if not self.due(self.steps):
            return False
        self._average(now=False)
        return True

    def average(self) -> None:
        """The average step, now, on all ranks: theta_j = phi = 1/d sum_i theta_i for every replica j.

        Raises:
            FloatingPointError: on every rank, before any weight is touched, if a replica is not finite.
            ValueError: on every rank, before any weight is touched, if optimizer states to average differ.
        """
        self.corrections.drop()  # they leave the mean as it is
        self._average(now=True)

    def wait(self) -> None:
        """Until an average step that goes on behind the next forward pass (`hide`) has ended."""
        if self._behind is not None:
            self._measured(self._behind.end())
            self._behind = None

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Lends the mean model phi: this rank's first model, with the mean's weights while the block runs.

        Collective, like the average step; on leaving, the replica is restored bit for bit, integer and
        other buffers included. Buffers that are not averaged are replica 0's meanwhile.

        Raises:
            FloatingPointError: on every rank, if a replica is not finite.
        """
        self.synchronize_shards()
        rows = self._checked_rows()
        model = self.models[0]
        tensors = [*model.parameters(), *model.buffers()]
        kept = [tensor.detach().clone() for tensor in tensors]
        try:
            with torch.no_grad():
                average_(rows, self._layouts, self.members, self._storage, exact=self.exact, write="first")
                broadcast_(local_tensors(model, self.extra_buffers), self.members.group)
            yield model
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.detach().copy_(value)

    @torch.no_grad()
    def restart(self) -> None:
        """Gives all replicas the parameters and buffers of the first one; collective."""
        self.wait()
        self.corrections.drop()
        first = [*self.models[0].parameters(), *self.models[0].buffers()]
        broadcast_(first, self.members.group)
        for model in self.models[1:]:
            for tensor, value in zip([*model.parameters(), *model.buffers()], first, strict=True):
                tensor.detach().copy_(value)

    @torch.no_grad()
    def synchronize_shards(self) -> None:
        """Gives all ranks of a replica the buffers of the first; collective.

        DDP's ranks each keep statistics of their own share of the batch, until the next forward pass
        does the same.
        """
        self.wait()
        for model in self.models:
            broadcast_(list(model.buffers()), self.shards)

    @torch.no_grad()
    def check_finite(self, step: int | None = None) -> None:
        """Raises FloatingPointError on all ranks, naming replica and step, if a weight is inf or NaN.

        Args:
            step: the number of the last step, if it has not been counted yet.
        """
        self.wait()
        check_finite(self._rows(), self.members, self.steps if step is None else step)

    def state_dict(self) -> dict[str, Any]:
        """The count of steps and the last distances, JSON-able. The replicas' own states are the caller's to keep.

        With a delay these have a part in `corrections`.
        """
        self.wait()
        distances = None if self.distances is None else self.distances.tolist()
        late = {"correction_due": self.corrections.due} if self.delay else {}
        return {"steps": self.steps, "distances": distances, **late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, distances = int(state["steps"]), state["distances"]
        self.distances = None if distances is None else torch.tensor(distances, dtype=torch.float64)
        self.corrections.due = state.get("correction_due")

    # What is averaged

    def _averaged_tensors(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Of each hosted model: buffers, parameters. Found anew each time, since a caller may have replaced them."""
        return [averaged_tensors(model, self.extra_buffers) for model in self.models]

    def _checked_rows(self) -> list[list[Tensor]]:
        """The tensors of each hosted model, all of which are finite and in flat storage; collective."""
        check_finite(rows := self._rows(), self.members, self.steps)
        if self.exact:
            self._storage.hold(rows, self._layouts)
        return rows

    def _rows(self) -> list[list[Tensor]]:
        return [buffers + parameters for buffers, parameters in self._averaged_tensors()]

    @torch.no_grad()
    def _average(self, now: bool) -> None:
        """The average step: now, or behind the next forward pass, or as a correction to come."""
        self.synchronize_shards()
        device = next((parameter.device for parameter in self.models[0].parameters()), torch.device("cpu"))
        beside = not now and can_hide(self.members, device)
        if self.delay and not now:
            self._average_late(beside)
            return
        rows = self._checked_rows()
        states = same_states(self.optimizers, self.members) if self.optimizer_state == "average" else None
        measured = range(self._buffers, len(rows[0])) if self.measure else NOTHING
        where = rows, self._layouts, self._aside, self._storage

        def exchange(done: Done | None) -> Tensor | None:
            if done is None and self.hide and beside:
                done = _nobody_waits  # the ranks meet for it, and another rank may hide
            return average_(*where, exact=self.exact, measured=measured, done=done)

        if self.hide and beside and not self._must_wait():
            under_way = begin(exchange, len(rows[0]), device, beside)
            self._behind = Behind(under_way, self.models, rows)
            if self.shards is not None:  # DDP hands buffers around before the model's own forward begins
                under_way.wait_for(range(self._buffers))
        else:
            self._measured(exchange(None))
        if states is not None:
            layouts = [tuple(range(value.dim())) for value in states[0]]  # on every rank, however it is laid out there
            average_(states, layouts, self.members, exact=self.exact)
        if self.optimizer_state == "reset":
            for optimizer in self.optimizers:
                forget(optimizer)

    def _must_wait(self) -> bool:
        """Whether nothing can be hidden behind the models' forward passes; warns of it once."""
        why = unseen(self.models)
        if why is not None and not self._said:
            self._said = True
            warnings.warn(
                f"hide=True has no effect with {why}, whose forward pass cannot wait for a weight: the average step is "
                "waited for, and the bits are the same",
                stacklevel=4,  # the caller's `step`
            )
        return why is not None

    def _average_late(self, aside: bool) -> None:
        """The running statistics' average step, and what leads to that of the parameters."""
        tensors, layouts, first = self._averaged_tensors(), self._layouts, self._buffers
        if first:
            buffers = [buffers for buffers, _ in tensors]
            check_finite(buffers, self.members, self.steps)
            average_(buffers, layouts[:first], self.members, exact=self.exact)
        self.corrections.begin(
            [parameters for _, parameters in tensors],
            layouts[first:],
            self.steps,
            self.steps + self.delay,
            exact=self.exact,
            measure=self.measure,
            aside=aside,
        )

    @torch.no_grad()
    def _correct(self) -> None:
        parameters = [parameters for _, parameters in self._averaged_tensors()]
        self._measured(self.corrections.add_to(parameters))

    def _measured(self, squares: Tensor | None) -> None:
        if squares is not None:
            self.distances = squares.sqrt()


def _nobody_waits(_: int) -> None:
    """For a tensor that is done."""
