"""Nodes: replicas that are near each other average among themselves more often than with the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import lcm

import torch.distributed as dist

from lookaround_ddp.averaging.background import new_group
from lookaround_ddp.averaging.matrix import Matrix
from lookaround_ddp.averaging.replica_group import ReplicaGroup, size_of
from lookaround_ddp.averaging.rounds import whole


@dataclass(frozen=True)
class Nodes:
    """Averages on two levels: every round ends with one inside each node, and some with one over all replicas instead.

    Attributes:
        size: replicas of a node; the first so many are the first node's, and so on.
        k: steps between two averages over all; a multiple of those of a round.
    """

    size: int
    k: int

    def check(self, k: int | Callable[[int], int] | None, delay: int, replicas: int) -> None:
        """Raises ValueError, saying what to do, unless they go with the replicas, and with other settings."""
        if whole(self.size) is None or whole(self.k) is None:
            raise ValueError(f"nodes is {self}: size and k are whole numbers")
        if self.size < 2 or self.size >= replicas or replicas % self.size:
            raise ValueError(
                f"nodes.size is {self.size}: give 2 or more, and such that it divides the {replicas} replicas into "
                "several nodes"
            )
        if k is None:
            raise ValueError("nodes average among themselves when a round ends, and k=None has none: give a k")
        if callable(k):
            raise ValueError("nodes average over all after a multiple of k steps: give one k for all rounds")
        if self.k <= k or self.k % k:
            raise ValueError(f"nodes.k is {self.k}: give a multiple of k = {k}, such as {max(2, self.k // k) * k}")
        if delay:
            raise ValueError(f"nodes average when a round ends, not {delay} steps later: use delay=0")


def neighbours(counts: Sequence[int], size: int) -> list[list[int]]:
    """Divides the ranks into sets that average by themselves: each hosts whole nodes, and as few as can be.

    Args:
        counts: of each rank, how many replicas it hosts.
        size: replicas of a node.
    """
    sets: list[list[int]] = []
    first = 0
    for rank, count in enumerate(counts):
        if first % size == 0:  # a node begins with this rank
            sets.append([])
        sets[-1].append(rank)
        first += count
    return sets


def nearby(replica_group: ReplicaGroup, size: int, inside: dist.ProcessGroup | None) -> ReplicaGroup:
    """Returns the ranks that average by themselves with this one, and the replicas of these ranks. Collective.

    Args:
        replica_group: all ranks.
        inside: the process group of those ranks; if None, it is made where `replica_group` are all processes.

    Raises:
        ValueError: it is another one; none is given, and none can be made.
    """
    sets = neighbours(replica_group.counts, size)
    own = next(ranks for ranks in sets if replica_group.rank in ranks)
    if replica_group.group is not None and inside is None and replica_group.ranks == dist.get_world_size():
        made = {tuple(ranks): new_group(replica_group.group, ranks) for ranks in sets if len(ranks) > 1}
        inside = made.get(tuple(own))
    if size_of(inside) != len(own):
        raise ValueError(f"nodes of {size} replicas: give as `inside` the group of these ranks of `group`: {own}")
    return ReplicaGroup(inside if len(own) > 1 else None, tuple(replica_group.counts[rank] for rank in own), size)


def matrix_near(matrix: Matrix, replica_group: ReplicaGroup, near: ReplicaGroup) -> Matrix:
    """Returns the rows of the replicas that are near, out of those of all members'."""
    if len(matrix.rows) == len(matrix.own):  # the others are out of reach, or there are none
        return matrix
    first = replica_group.first - near.first
    return replace(matrix, rows=matrix.rows[first : first + near.replicas])


def shared_parts(replica_group: ReplicaGroup, size: int) -> int:
    """Returns into how many parts of one length a row must fall, so that any of the sets of ranks can share it."""
    return lcm(replica_group.ranks, *map(len, neighbours(replica_group.counts, size)))
