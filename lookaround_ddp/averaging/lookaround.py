"""`Lookaround`: k steps around, 1 step average, for any training loop (arXiv 2306.07684, Algorithm 1).

It needs torch alone. A replica is a model that a rank trains with an optimizer and data of its own;
`Lookaround` starts all replicas from one point, counts their steps, and after every k-th replaces the
replicas by their mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp.averaging.average_step import AverageStep
from lookaround_ddp.averaging.background import background_replica_group
from lookaround_ddp.averaging.checks import check_again, check_all
from lookaround_ddp.averaging.delayed import Corrections
from lookaround_ddp.averaging.nodes import Nodes, nearby
from lookaround_ddp.averaging.optimizer_state import average_states_, reset_state, same_states
from lookaround_ddp.averaging.outer import Outer, OuterStep
from lookaround_ddp.averaging.replica_group import ReplicaGroup, broadcast_to_all_
from lookaround_ddp.averaging.replicas import Replicas
from lookaround_ddp.averaging.rounds import RoundLength
from lookaround_ddp.averaging.tensors import as_list, as_models


class Lookaround(Replicas):
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
        models: the model of this rank, or the models that this rank hosts. Replica numbers run through the
            ranks: rank 0's models first.
        k: steps in a round; None never averages (independent replicas). Or a function that returns the steps of the
            round that begins when each replica has done as many as it is given: `start` for the first. It is asked
            whenever it is needed, on each rank, so its answers must always be the same.
        start: steps before the first round begins.
        group: the ranks to average over, as torch.distributed made it; by default all, or this process alone where
            none are set up. It is not kept alive: when it has been destroyed, what needs the ranks raises RuntimeError.
        beside, inside: a second group of the same ranks, for `delay`, and one of those that average inside nodes
            together, for `nodes`; needed only where `group` leaves out some.
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
        delay: another algorithm, for slow networks: the mean of step t arrives so many steps later, as a
            correction, theta_j += phi_t - theta_j,t. Less than k. Running statistics do not wait, nor
            does the check that all replicas are finite.
        outer: another algorithm: a round ends not at the mean, but where an optimizer moves phi; see `Outer`. It begins
            with the first mean if `start` > 0. Running statistics, `average` and `averaged` have the plain mean.
        nodes: another algorithm: only some rounds end with an average over all, the others inside nodes; see `Nodes`.

    Attributes:
        steps: steps of each replica so far.
        distances: L2 distance of each replica's parameters to the mean at the last average step that measured it,
            shape (d,), fp64; None before the first.
        outer: what `outer` asks for and has come to; None if that is the mean itself.

    Raises:
        ValueError: on all ranks, whichever of them it concerns: k < 1, start < 0, a number of steps that is not whole,
            a model that is wrapped in DDP or FSDP or has lazy parameters, tensors without values, dense memory or a
            mean (meta, sparse, expanded, float8), hosted models that share tensors, models or ranks that differ
            in structure or settings, an unknown name in `buffers`, an optimizer of another model, a delay of k steps
            or more; what `Outer.check` or `Nodes.check` says; no group `beside` or `inside` where one is needed.
            On a rank that `group` leaves out, there alone.

    Warns:
        UserWarning: at the first average, on one rank, if all replicas have trained and are the same.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        k: RoundLength = 5,
        *,
        start: int = 0,
        group: dist.ProcessGroup | None = None,
        beside: dist.ProcessGroup | None = None,
        inside: dist.ProcessGroup | None = None,
        shards: dist.ProcessGroup | None = None,
        buffers: Iterable[str] = (),
        exact: bool = True,
        optimizers: Sequence[torch.optim.Optimizer] = (),
        optimizer_state: Literal["local", "average", "reset"] = "local",
        measure: bool = False,
        delay: int = 0,
        outer: Outer | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        hosted, self.optimizers = as_models(models), as_list(optimizers, torch.optim.Optimizer)
        self.nodes, self.measure, self.optimizer_state = nodes, measure, optimizer_state
        if group is None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        replica_group, named = ReplicaGroup.of(group, hosted=len(hosted)), as_list(buffers, str)
        settings: dict[str, Any] = {"k": k, "start": start, "delay": delay, "optimizer_state": optimizer_state}
        settings |= {"buffers": named, "exact": exact, "measure": measure, "outer": outer, "nodes": nodes}
        groups = {"beside": beside, "inside": inside, "shards": shards}
        self.rounds = check_all(hosted, replica_group, self.optimizers, groups, settings)
        self.k, self.start, self.delay = self.rounds.k, self.rounds.start, self.rounds.delay
        near = None if nodes is None else nearby(replica_group, nodes.size, inside)
        super().__init__(AverageStep(hosted, replica_group, near, shards, frozenset(named), exact=exact))
        if optimizer_state == "average":  # the host waits for what the ranks say of their optimizers anyway
            self._average.later = False
        background = background_replica_group(replica_group, beside) if self.delay else replica_group
        self.corrections = Corrections(self._average, background, shards)
        self.outer = OuterStep(outer) if outer is not None and outer.moves else None
        self.distances: Tensor | None = None
        self._start_anew()

    def due(self, steps: int) -> bool:
        """Returns whether an average step follows step number `steps`, counted from 1."""
        return self.rounds.due(steps)

    def due_over_all(self, steps: int) -> bool:
        """Returns whether the average step that follows is one over all replicas."""
        return self.due(steps) and (self.nodes is None or (steps - self.start) % self.nodes.k == 0)

    def step(self) -> bool:
        """Counts a step of every replica; the last of a round is followed by the average step.

        Call it on every rank after each step, attempted or skipped. Returns whether it averaged, or began to.

        Raises:
            NotFiniteError, ValueError: see `average`; or k, if it is a function, gives no steps for the round that
                is to begin, or no more than the delay. On a GPU, whose host does not wait for the answer, `average`'s
                at the next average step or call of `look`: nothing has been written then.
            ValueError: it is called while `averaged` lends the mean model; so are `average` and `restart`.
        """
        self._refuse_while_lent("step")
        self.steps += 1
        due = self.rounds.reach(self.steps)
        if self.corrections.due == self.steps:
            self._measured(self.corrections.add_to(self._average.parameters()))
        if due:
            self._begin(now=False)
        return due

    def average(self) -> None:
        """Averages now, on all ranks: theta_j = phi = 1/d sum_i theta_i for every replica j. Rounds go on meanwhile.

        Raises:
            NotFiniteError: on every rank, before any weight is touched, if a replica is not finite, or was not when
                its node averaged (which leaves its ranks' replicas as they are).
            ValueError: on every rank, before any weight is touched, if optimizer states to average differ; if the ranks
                are at different steps; if parameters or buffers have become others, but for their dtype.
        """
        self._refuse_while_lent("average")
        self.corrections.drop()  # they leave the mean as it is
        self._begin(now=True)

    def restart(self) -> None:
        """Gives all replicas the parameters and buffers of the first one, a new start of `outer` too; collective.

        The models may have become others in the meantime.

        Raises:
            ValueError: on all ranks, unless the models are alike.
        """
        self._refuse_while_lent("restart")
        self.look()
        check_again(self.models, self.replica_group, self.extra_buffers)
        self._start_anew()

    @torch.no_grad()
    def _start_anew(self) -> None:
        self.corrections.drop()
        broadcast_to_all_([[*model.parameters(), *model.buffers()] for model in self.models], self.replica_group.group)
        self._average.restart(self.outer, begins=self.steps >= self.start)

    def state_dict(self) -> dict[str, Any]:
        """Returns the count of steps and the last distances, JSON-able; the caller keeps the replicas' own states.

        With a delay, `corrections` holds tensors to keep with each replica; with an outer optimizer, `outer` has
        a state of its own, the same on all ranks.
        """
        self.look()
        distances = None if self.distances is None else self.distances.tolist()
        delayed = {"correction_due": self.corrections.due} if self.delay else {}
        return {"steps": self.steps, "distances": distances, **delayed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` returned; without its own state, an outer optimizer begins with the next mean."""
        self.steps, distances = int(state["steps"]), state["distances"]
        self._average.began_from = None  # the weights are loaded too, perhaps those of a mean
        self.distances = None if distances is None else torch.tensor(distances, dtype=torch.float64)
        self.rounds.reach(self.steps)
        self.corrections.due = state.get("correction_due")
        if self.outer is not None and not self.outer.loaded:
            self.outer.begin(None)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raises ValueError: a copy would average, with the other ranks, models that these do not have."""
        raise ValueError(
            "a Lookaround is neither copied nor pickled: it averages the models that it was made with. Copy the models "
            "(copy.deepcopy), or keep state_dict(); and make another Lookaround of the copies, on all ranks"
        )

    @torch.no_grad()
    def _begin(self, now: bool) -> None:
        """Averages as `delay` asks for, at once if `now`, and treats the optimizers' states."""
        self.synchronize_shards()
        near = None if now or self.due_over_all(self.steps) else self._average.near
        replica_group = near or self.replica_group
        states = None
        if self.optimizer_state == "average":
            if near is None and self.replicas > 1:  # first, as of `averaged`: ranks at different steps part after it
                self._average.check(self.steps)
            states = same_states(self.optimizers, replica_group)
        if self.replicas == 1:
            self._measured(torch.zeros(1, dtype=torch.float64) if self.measure else None)
        elif near is not None:
            self._average.average_nodes(self.steps)
        elif self.delay and not now:
            self.corrections.begin(self.steps, self.steps + self.delay, measure=self.measure)
        else:
            self._measured(self._average.average(self.steps, measure=self.measure, outer=None if now else self.outer))
        if states is not None:
            average_states_(states, replica_group, exact=self.exact)
        for optimizer in self.optimizers if self.optimizer_state == "reset" else ():
            reset_state(optimizer)

    def _measured(self, squares: Tensor | None) -> None:
        """Keeps distances, from their squares, if they were measured."""
        if squares is not None:
            self.distances = squares.sqrt()
