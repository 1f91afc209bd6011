"""Checks of what `Lookaround` is given: arguments, models, and ranks that were built in another way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.rounds import Rounds
from lookaround_ddp.averaging.tensors import digest, mean_digest


def check_agreement(
    models: Sequence[nn.Module], buffers: Collection[str], iteration: int, gather: Callable[[Any], list[Any]]
) -> None:
    """Compares the replicas after an average step, bit by bit. Collective.

    They are the same unless a device or a network computes wrongly; to train on would spread it.

    Args:
        models: the replicas that this rank hosts.
        buffers: names of those that are averaged in addition to the running statistics.
        gather: value of this rank -> the values of all ranks, in rank order.

    Raises:
        RuntimeError: on all ranks, naming the first that has other weights than rank 0.
    """
    everyone = gather([mean_digest(model, buffers) for model in models])
    for rank, digests in enumerate(everyone):
        if set(digests) != {everyone[0][0]}:
            raise RuntimeError(
                f"after the average step of iteration {iteration} rank {rank} has other weights than rank 0: "
                "look for a faulty device there; the last checkpoint is from before"
            )


WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule")


def check(models: Sequence[nn.Module], members: ReplicaGroup, optimizers: int, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError on all ranks if there is something wrong with one of them. Collective.

    Args:
        optimizers: how many were given.
        arguments: the others of `Lookaround`, which all ranks must give alike.
    """
    k: int | None = None
    refusal: ValueError | None = None
    try:
        start, delay = arguments["start"], arguments["delay"]
        k = Rounds(arguments["k"], start, delay).length(start)  # a function is compared by what it gives first
        check_arguments(k, start, delay, arguments["optimizer_state"], len(models), optimizers)
        if arguments["outer"] is not None:
            arguments["outer"].check(k, delay, members.replicas)
        if arguments["nodes"] is not None:
            arguments["nodes"].check(arguments["k"], delay, members.replicas)
        check_models(models, arguments["buffers"])
    except ValueError as error:
        refusal = error  # the other ranks must hear of it, not wait for this one
    structure = None if refusal else digest(models[0])
    check_ranks(members, {**arguments, "k": k, "structure of the model (digest)": structure}, refusal)


def check_arguments(k: int | None, start: int, delay: int, optimizer_state: str, models: int, optimizers: int) -> None:
    """Raises ValueError, saying what to give instead."""
    if k is not None and k < 1:
        raise ValueError(f"k is {k}: a round has at least 1 step; None never averages")
    if start < 0:
        raise ValueError(f"start is {start}: give the number of steps before the first round, 0 or more")
    if delay < 0 or (k is not None and delay >= k):
        raise ValueError(f"delay is {delay}: a mean can arrive 0 to k - 1 = {(k or 1) - 1} steps later")
    if optimizer_state not in ("local", "average", "reset"):
        raise ValueError(f"optimizer_state is {optimizer_state!r}: use 'local', 'average' or 'reset'")
    if optimizer_state != "local" and optimizers != models:
        raise ValueError(f"optimizer_state={optimizer_state!r} needs `optimizers`, one for each model")
    if optimizer_state != "local" and delay:
        raise ValueError(f"optimizer_state={optimizer_state!r} and delay={delay}: a delayed mean leaves it local")


def check_models(models: Sequence[nn.Module], extra: Collection[str]) -> None:
    """Raises ValueError, saying what to do, unless the models can be replicas that one rank hosts."""
    if not models:
        raise ValueError("no model: every rank hosts at least one replica")
    for model in models:
        wrapped = {c.__name__ for m in model.modules() for c in type(m).__mro__}.intersection(WRAPPERS)
        if wrapped:
            raise ValueError(
                f"the model is wrapped in {wrapped.pop()}, whose ranks hold one replica together: pass the "
                f"bare module (model.module), and the group of ranks that hold different replicas as `group`"
            )
        if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
            raise ValueError("the model has lazy parameters or buffers without a shape: run one forward pass first")
        unknown = set(extra) - {name for name, _ in model.named_buffers()}
        if unknown:
            raise ValueError(f"no buffer named {sorted(unknown)[0]!r} in the model: see model.named_buffers()")
    if len({digest(model) for model in models}) > 1:
        raise ValueError("the hosted models differ in structure: names, shapes and dtypes must be the same")
    owners: dict[int, int] = {}
    for number, model in enumerate(models):
        for tensor in [*model.parameters(), *model.buffers()]:
            owner = owners.setdefault(id(tensor), number)
            if owner != number:
                raise ValueError(
                    f"the hosted models {owner} and {number} share tensors: give each its own, as copy.deepcopy does"
                )


def check_ranks(members: ReplicaGroup, settings: Mapping[str, object], refusal: ValueError | None) -> None:
    """Raises ValueError on all ranks if one of them refuses its arguments, or was given others. Collective."""
    everyone = members.gather_objects((None if refusal is None else str(refusal), settings))
    if refusal is not None:
        raise refusal
    for rank, (refused, theirs) in enumerate(everyone):
        if refused is not None:
            raise ValueError(f"refused on rank {rank}: {refused}")
        for name, mine in settings.items():
            if theirs[name] != mine:
                raise ValueError(
                    f"rank {rank} has another {name} than rank {members.rank}: {theirs[name]!r}, not {mine!r}; "
                    f"all ranks must build the same"
                )
