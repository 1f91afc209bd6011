"""Checks of what `Lookaround` is given: arguments, models, and ranks that were built in another way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lookaround_ddp.averaging.nodes import Nodes
from lookaround_ddp.averaging.outer import Outer
from lookaround_ddp.averaging.replica_group import ReplicaGroup, require_member, size_of
from lookaround_ddp.averaging.rounds import Rounds
from lookaround_ddp.averaging.tensors import digest, mean_digest, trouble_with


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


STRUCTURE = "structure of the model (digest)"

SHARDED_ADVICE = (
    "which spreads one replica's weights over its ranks: Lookaround cannot average these; let each rank hold a whole "
    "replica, or train one replica on several ranks with DDP (see `shards`)"
)
WRAPPERS = {  # what is wrong with each, and the mend
    "DistributedDataParallel": (
        "which averages the gradients of its ranks and so keeps their replicas alike: pass the bare module "
        "(model.module). Where each rank has a replica of its own, also train the bare module (for Lightning, "
        "accelerate and Hugging Face's Trainer see lookaround_ddp.integrations); where several ranks "
        "train one replica, wrap it with them as DDP's process_group, give the same group as `shards`, and as `group` "
        "the ranks that hold different replicas"
    ),
    "FullyShardedDataParallel": SHARDED_ADVICE,
    "FSDPModule": SHARDED_ADVICE,
}


def check_all(
    models: Sequence[nn.Module],
    replica_group: ReplicaGroup,
    optimizers: Sequence[torch.optim.Optimizer],
    groups: Mapping[str, dist.ProcessGroup | None],
    arguments: Mapping[str, Any],
) -> Rounds:
    """Returns when rounds end, or raises ValueError on all ranks if there is something wrong with one. Collective.

    Args:
        groups: the process groups beside that of the replicas.
        arguments: the others of `Lookaround`, which all ranks must give alike.

    Raises:
        ValueError: also on a rank where all is well; or what else a rank met, on that rank.
    """
    rounds, found, mistake = Rounds(None, 0), {}, None
    try:
        rounds = Rounds(arguments["k"], arguments["start"], arguments["delay"])
        k, delay = rounds.length(rounds.start), rounds.delay  # a function is compared by what it gives first
        check_arguments(k, rounds.start, delay, arguments["optimizer_state"], len(models), len(optimizers))
        for name, group in groups.items():
            require_member(name, group)
        for name, kind in (("outer", Outer), ("nodes", Nodes)):
            if not isinstance(arguments[name], kind | None):
                raise ValueError(f"{name} is {arguments[name]!r}: give {kind.__name__}(...), or None")
        if arguments["outer"] is not None:
            arguments["outer"].check(k, delay, replica_group.replicas)
        if arguments["nodes"] is not None:
            arguments["nodes"].check(rounds.k, delay, replica_group.replicas)
        check_models(models, arguments["buffers"])
        check_optimizers(models, optimizers)
        whole_numbers = {"k": k, "start": rounds.start, "delay": delay}
        buffers = sorted(set(arguments["buffers"]))
        found = {**arguments, **whole_numbers, "buffers": buffers, STRUCTURE: digest(models[0])}
        found |= {"beside (is there one)": groups["beside"] is not None, "size of shards": size_of(groups["shards"])}
    except Exception as error:  # of any kind: the other ranks must hear of it, not wait for this one
        mistake = error
    check_ranks(replica_group, found, mistake)
    return rounds


def check_again(models: Sequence[nn.Module], replica_group: ReplicaGroup, buffers: Collection[str]) -> None:
    """Raises ValueError on all ranks if models that may have changed can no longer be replicas. Collective."""
    found, mistake = {}, None
    try:
        check_models(models, buffers)
        found = {STRUCTURE: digest(models[0])}
    except ValueError as error:
        mistake = error
    check_ranks(replica_group, found, mistake)


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
        if not isinstance(model, nn.Module):
            raise ValueError(f"no model, but of type {type(model).__name__}: give an nn.Module, or a list of several")
        classes = [c.__name__ for m in model.modules() for c in type(m).__mro__]
        wrapped = next((name for name in WRAPPERS if name in classes), None)
        if wrapped:
            raise ValueError(f"the model is wrapped in {wrapped}, {WRAPPERS[wrapped]}")
        if any(nn.parameter.is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
            raise ValueError("the model has lazy parameters or buffers without a shape: run one forward pass first")
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if trouble := trouble_with(tensor):
                raise ValueError(f"{name!r} of the model {trouble}")
        names = {name for name, _ in model.named_buffers()}
        for name in extra:
            if name not in names:
                raise ValueError(f"no buffer named {name!r} in the model: see model.named_buffers()")
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


def check_optimizers(models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raises ValueError if an optimizer is that of another model."""
    for number, (model, optimizer) in enumerate(zip(models, optimizers, strict=False)):
        theirs = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if theirs.isdisjoint(map(id, model.parameters())):
            raise ValueError(
                f"optimizer {number} holds no parameter of model {number}: give the optimizers of these models, in "
                "their order"
            )


def check_ranks(replica_group: ReplicaGroup, settings: Mapping[str, object], mistake: Exception | None) -> None:
    """Raises ValueError on all ranks if one of them refuses its arguments, or was given others. Collective.

    The one that refuses raises its own error.
    """
    kind = "" if isinstance(mistake, ValueError) else f"{type(mistake).__name__}: "
    everyone = replica_group.gather_objects((None if mistake is None else f"{kind}{mistake}", settings))
    if mistake is not None:
        raise mistake
    for rank, (refused, theirs) in enumerate(everyone):
        if refused is not None:
            raise ValueError(f"refused on rank {rank}: {refused}")
        for name, mine in settings.items():
            if theirs[name] != mine:
                raise ValueError(
                    f"rank {rank} has another {name} than rank {replica_group.rank}: {theirs[name]!r}, not {mine!r}; "
                    f"all ranks must build the same"
                )
