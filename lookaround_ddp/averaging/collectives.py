"""The mean of rows by collectives of the backend, where replicas are on several hosts or GPUs.

The volume is that of a ring all-reduce: each rank gets the d values of *its* shard of a piece in the stored
precision, sums them in replica order, and gives the mean to all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import lcm

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging import mean as within
from lookaround_ddp.averaging.matrix import UNIT, Matrix
from lookaround_ddp.averaging.mean import Scratch, Task, blocks, measure, write_mean
from lookaround_ddp.averaging.replica_group import ReplicaGroup, all_gather_

PIECE_BYTES = {
    "cpu": 2 * 2**20,
    "cuda": 64 * 2**20,
}  # of a row, exchanged at a time
AHEAD = 3  # pieces whose shards are on their way while one is summed, and means while the next ones are


def mean_by_collectives_(matrix: Matrix, replica_group: ReplicaGroup, task: Task) -> None:
    """Averages piece by piece: an all-to-all of shards, their fp64 sums, and an all-gather. Collective.

    The number of columns is a multiple of that of the ranks.
    """
    own = matrix.own
    scratch = Scratch(own.dtype, replica_group.wire(own.device))
    size = _piece(own, replica_group, task)
    pieces = [(start, min(start + size, task.stop)) for start in range(task.start, task.stop, size)]
    shards = deque(_fetch(own, replica_group, *piece) for piece in pieces[:AHEAD])
    means: deque[_Arriving] = deque()
    for number in range(len(pieces)):
        if number + AHEAD < len(pieces):
            shards.append(_fetch(own, replica_group, *pieces[number + AHEAD]))
        means.append(_give(_means(scratch, shards.popleft().wait(), replica_group.teams), replica_group))
        if number >= AHEAD:
            _finish_piece(
                matrix, replica_group, task, pieces[number - AHEAD][0], _gathered_means(means.popleft()).to(own.device)
            )
    for start, _ in pieces[len(pieces) - len(means) :]:
        _finish_piece(matrix, replica_group, task, start, _gathered_means(means.popleft()).to(own.device))


def mean_by_all_reduce_(matrix: Matrix, replica_group: ReplicaGroup, task: Task) -> None:
    """Averages by one all-reduce, summed in the backend's own order. Collective."""
    own, teams = matrix.own[:, task.start : task.stop], replica_group.teams
    sums = [_sum(_hosted(own, replica_group, team)) for team in teams]
    total = sums[0] if len(sums) == 1 else torch.cat(sums)
    if replica_group.group is not None:
        total = total.to(replica_group.wire(own.device))
        dist.all_reduce(total, group=replica_group.group)
    _finish_piece(
        matrix, replica_group, task, task.start, total.div_(len(teams[0])).to(own.device).view(len(teams), -1)
    )


def _means(scratch: Scratch, shards: Tensor, teams: list[range]) -> Tensor:
    """Returns the teams' means of the replicas' shards, shape (teams, columns)."""
    return torch.stack([scratch.mean_of(shards[team.start : team.stop].unbind(0)).clone() for team in teams])


def _give(means: Tensor, replica_group: ReplicaGroup) -> _Arriving:
    """Begins to send the means of this rank's shard to all, and to receive the others'."""
    whole = means.new_empty(replica_group.ranks, *means.shape)
    return _Arriving(whole, means, all_gather_(whole.view(-1), means.view(-1), replica_group.group, async_op=True))


def _gathered_means(arriving: _Arriving) -> Tensor:
    """Waits for the means of all shards; returns them in order, shape (teams, columns of the piece)."""
    return arriving.wait().transpose(0, 1).flatten(1)


def _sum(rows: Tensor) -> Tensor:
    """Returns the sum of rows in a memory of its own: zeros, if there are none."""
    total = rows[0].clone() if len(rows) else rows.new_zeros(rows.shape[1])
    for row in rows[1:]:
        total += row
    return total


def gather_segments_(own: Tensor, segment: Tensor, shards: dist.ProcessGroup, device: torch.device) -> None:
    """Completes rows of which each rank of a replica has averaged its own segment. Collective.

    Args:
        own: the rows, shape (hosted, columns).
        segment: this rank's columns of them; all ranks' segments are of one size, and in rank order.
        shards: the ranks of the replica.
        device: from which the backend can send.
    """
    for row, part in zip(own, segment, strict=True):
        whole = torch.empty(row.shape, dtype=row.dtype, device=device)
        all_gather_(whole, part.to(device).contiguous(), shards)
        row.copy_(whole)


def _piece(own: Tensor, replica_group: ReplicaGroup, task: Task) -> int:
    """Returns how many columns to exchange at a time: whole shards, and whole blocks where distances are measured."""
    wanted = PIECE_BYTES.get(own.device.type, PIECE_BYTES["cuda"]) // own.itemsize
    unit = replica_group.ranks * UNIT
    if task.squares is not None:
        unit = lcm(unit, within.BLOCK_ELEMENTS)
    return max(wanted // unit, 1) * unit


@dataclass
class _Arriving:
    """A tensor on its way: the shards of this rank, shape (replicas, columns), or the mean of a piece."""

    values: Tensor
    sent: Tensor  # alive until it has been sent
    work: dist.Work | None

    def wait(self) -> Tensor:
        if self.work is not None:
            self.work.wait()
        return self.values


def _fetch(own: Tensor, replica_group: ReplicaGroup, start: int, stop: int) -> _Arriving:
    """Begins to send each rank its shard of these columns, and to receive one's own of all replicas."""
    hosted, ranks, size = len(own), replica_group.ranks, (stop - start) // replica_group.ranks
    part = own[:, start:stop].to(replica_group.wire(own.device))
    if ranks == 1:
        return _Arriving(part, part, None)
    sent = part.view(hosted, ranks, size).transpose(0, 1).contiguous()  # the row itself, where one replica is hosted
    shards = sent.new_empty(replica_group.replicas, size)
    work = dist.all_to_all_single(
        shards.view(-1),
        sent.view(-1),
        [count * size for count in replica_group.counts],
        [hosted * size] * ranks,
        group=replica_group.group,
        async_op=True,
    )
    return _Arriving(shards, sent, work)


def _finish_piece(matrix: Matrix, replica_group: ReplicaGroup, task: Task, start: int, means: Tensor) -> None:
    """Measures and writes a piece of columns from `start` on, of which all ranks have each team's mean."""
    stop = start + means.shape[1]
    scratch = Scratch(means.dtype, means.device)
    for mean, team in zip(means, replica_group.teams, strict=True):
        own = _hosted(matrix.own[:, start:stop], replica_group, team)
        if task.squares is not None:
            for low, high in blocks(start, stop, own.device):
                replicas = dict(enumerate(own[:, low - start : high - start], max(replica_group.first, team.start)))
                measure(task, matrix, scratch, low, mean[low - start : high - start], replicas)
        write_mean(own[: 1 if task.write == "first" else None].unbind(0), mean, task)


def _hosted(own: Tensor, replica_group: ReplicaGroup, team: range) -> Tensor:
    """Returns the rows of those hosted replicas that are of a team."""
    return own[max(team.start - replica_group.first, 0) : max(team.stop - replica_group.first, 0)]
