"""The mean of d replicas over the ranks of a process group: the same bits on any number of ranks.

How an element is summed is in `mean`. The volume is that of a ring all-reduce: each rank fetches the d values of *its*
shard in the stored precision, forms the mean, and sends its shard to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.graph import increment_version

from lookaround_ddp.averaging.buckets import _average_by_messages_
from lookaround_ddp.averaging.in_place import Write, average_in_place_
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.shared_storage import FlatStorage
from lookaround_ddp.averaging.tensors import Layout, flat_of, write_back

NO_TENSORS = range(0)


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
    members: ReplicaGroup,
    storage: FlatStorage | None = None,
    *,
    exact: bool = True,
    write: Write = "mean",
    measured: range = NO_TENSORS,
    on_tensor_done: Callable[[int], None] | None = None,
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
        write: "mean" overwrites every hosted replica with the mean, "first" only the first of them, "difference"
            writes mean - old value into each.
        measured: measure the replicas' distances to the mean, over these of the tensors.
        on_tensor_done: called with the index of each tensor once it holds its new value in every hosted replica.

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

    def finish(column: int) -> None:
        """Completes a tensor of every row: copies it back where it was exchanged through a copy, and reports it."""
        for row, row_flats in zip(rows, flats, strict=True):
            write_back(row[column], layouts[column], row_flats[column])
            increment_version(row[column])  # autograd does not see what other ranks write; a stale graph must fail
        if on_tensor_done is not None:
            on_tensor_done(column)

    if shared is None and exact and members.ranks == 1 and rows[0][0].device.type == "cpu":
        shared = flats  # not on a GPU, which buckets of many tensors keep busier
    if shared is not None:
        per_bucket = on_tensor_done is not None
        return average_in_place_(
            shared, members, write=write, measured=measured, on_tensor_done=finish, per_bucket=per_bucket
        )
    return _average_by_messages_(flats, members, exact, write, measured, finish)
