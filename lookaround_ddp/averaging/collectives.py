"""The mean of d replicas over the ranks of a process group: the same bits on any number of ranks.

Every element is summed in fp64 in replica order, divided by d and rounded once, whoever does it. (A
backend's all-reduce sums in an order that depends on the number of ranks, so its bits do too.) The
volume is that of a ring all-reduce: each rank fetches the d values of *its* shard in the stored
precision, forms the mean, and hands its shard to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from lookaround_ddp.averaging.buckets import _average_by_messages_
from lookaround_ddp.averaging.in_place import Write, average_in_place_
from lookaround_ddp.averaging.replica_group import Members
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, flat_of, write_back

NOTHING = range(0)


def broadcast_(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites `tensors`, of any dtype and memory layout, with those of the group's first rank."""
    if group is None or dist.get_world_size(group) == 1:
        return
    for tensor in tensors:
        flat = flat_of(tensor, tuple(range(tensor.dim())))
        dist.broadcast(flat.view(torch.uint8), group=group, group_src=0)
        write_back(tensor, tuple(range(tensor.dim())), flat)


def average_(
    rows: Sequence[Sequence[Tensor]],
    layouts: Sequence[Layout],
    members: Members,
    storage: FlatStorage | None = None,
    *,
    exact: bool = True,
    write: Write = "mean",
    measured: range = NOTHING,
    done: Callable[[int], None] | None = None,
) -> Tensor | None:
    """Replaces replicas by their mean, in place, one tensor after the other.

    Args:
        rows: the tensors of each hosted replica, floating-point or complex; shapes, dtypes and order are
            the same in every row on every rank.
        layouts: the order in which to traverse each tensor, the same on every rank. A tensor that is laid
            out in another way is averaged just as well, through a copy.
        members: where the replicas live.
        storage: that holds these tensors, if one does.
        exact: sum in fp64 in replica order; otherwise leave the sum to the backend's all-reduce.
        write: the mean into every row, or into the first alone and leave the others; or into every row what leads
            from its old values to the mean.
        measured: measure the replicas' distances to the mean, over these of the tensors.
        done: called with the number of each tensor when all rows have their new values of it, if somebody waits.

    Returns:
        Squared L2 distances of the replicas to their mean, shape (replicas,), fp64, the same on every
        rank; None if nothing is measured. Half-precision means are rounded from fp64 through fp32.
    """
    if not rows[0]:
        return members.gather(torch.zeros(members.hosted, dtype=torch.float64)) if measured else None
    shared = storage.rows if exact and storage is not None else None
    if shared is not None:
        first = members.rank * members.hosted
        flats = shared[first : first + members.hosted]
    else:
        flats = [[flat_of(t, layout) for t, layout in zip(row, layouts, strict=True)] for row in rows]

    def ended(column: int) -> None:
        for row, row_flats in zip(rows, flats, strict=True):
            write_back(row[column], layouts[column], row_flats[column])
            increment_version(row[column])  # autograd cannot see what other ranks write, and must refuse what is stale
        if done is not None:
            done(column)

    if shared is None and exact and members.ranks == 1 and rows[0][0].device.type == "cpu":
        shared = flats  # on a GPU larger pieces than a tensor keep it busy
    if shared is not None:
        hurried = done is not None
        return average_in_place_(shared, members, write=write, measured=measured, done=ended, hurried=hurried)
    return _average_by_messages_(flats, members, exact, write, measured, ended)
