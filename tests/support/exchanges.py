"""Averages and broadcasts of every kind of tensor in every placement, on six ranks, and the mean worked out by hand."""

from __future__ import annotations

import errno
import os
from fractions import Fraction
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp.averaging import collectives, mean, shared_memory
from lookaround_ddp.averaging.exchange import average_matrices_
from lookaround_ddp.averaging.replica_group import ReplicaGroup, broadcast_
from lookaround_ddp.averaging.rows import Rows
from tests.support.ranks import run

# Ranks x hosted replicas -> the ranks of the world that take part; (2, 3) has ranks that do not count from 0.
PLACEMENTS = {
    (1, 1): [0],
    (2, 1): [0, 1],
    (3, 1): [0, 1, 2],
    (1, 6): [2],
    (2, 3): [1, 4],
    (3, 2): [0, 3, 5],
    (6, 1): [0, 1, 2, 3, 4, 5],
}
# PIECE_BYTES, BLOCK_ELEMENTS, in memory that the ranks share or by collectives
SIZES = {
    "as shipped: shared": (collectives.PIECE_BYTES["cpu"], mean.BLOCK_ELEMENTS, True),
    "as shipped: collectives": (collectives.PIECE_BYTES["cpu"], mean.BLOCK_ELEMENTS, False),
    "tiny: shared": (256, 8, True),
    "tiny: collectives": (1008, 7, False),
}
EQUAL = [0.1, -0.1, 1 / 3, 1e-40, 1e-45, 3e38, -3e38, 0.0, 7.0]
EQUAL_DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]


def tensors_of(replica: int) -> list[Tensor]:
    """One replica's tensors: each dtype, and each memory layout that parameters come in."""
    generator = torch.Generator().manual_seed(replica)

    def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    image = randn(4, 3, 5, 5)
    return [
        randn(1001),
        # Replicas 0, 2, 4 are channels_last, the others contiguous: same values in another order in memory.
        image.to(memory_format=torch.channels_last) if replica % 2 == 0 else image,
        randn(101)[::2],  # with gaps
        randn(9, 7).t(),
        randn(),  # 0-dim
        randn(0, 3),
        randn(1),
        randn(37, dtype=torch.bfloat16),
        randn(41, dtype=torch.float16),
        randn(29, dtype=torch.float64),
        torch.complex(randn(11), randn(11)),
        randn(300) * 1e-42,  # subnormal
        # The order of the sum shows: 2^80 - 2^80 + 1 is 1, and 1 - 2^80 + 2^80 is 0.
        torch.full((5,), {0: 2.0**80, 1: -(2.0**80)}.get(replica, 1.0)),
    ]


def average_of(hosted: range, replica_group: ReplicaGroup, share: bool = False, **options: Any) -> list[list[Tensor]]:
    """The rows after average_, as it leaves them; it must work in place and keep memory layouts."""
    rows = [tensors_of(replica) for replica in hosted]
    averaged(rows, replica_group, share, **options)
    return rows


def averaged(rows: list[list[Tensor]], replica_group: ReplicaGroup, share: bool, **options: Any) -> Tensor | None:
    flat = Rows(replica_group, moves=share)
    flat.open(rows[0], [])
    flat.take(rows)
    replica_group.meet()
    before = [(t.data_ptr(), t.stride()) for row in rows for t in row]
    squares = average_matrices_(flat.matrices, replica_group, None, **options)
    flat.give()
    assert [(t.data_ptr(), t.stride()) for row in rows for t in row] == before
    return squares


def equal_rows(hosted: range) -> list[list[Tensor]]:
    reals = [torch.tensor(EQUAL, dtype=dtype) for dtype in EQUAL_DTYPES[:3]]
    return [[*(t.clone() for t in reals), torch.complex(reals[0], reals[0].flip(0))] for _ in hosted]


def worker(rank: int, ranks: int) -> dict[str, Any]:
    groups = {placement: dist.new_group(ranks) for placement, ranks in PLACEMENTS.items()}
    results: dict[str, Any] = {}
    for placement, group in groups.items():
        if rank not in PLACEMENTS[placement]:
            continue
        name = "{}x{}".format(*placement)
        replica_group = ReplicaGroup.of(group, placement[1])
        hosted = range(replica_group.first, replica_group.first + replica_group.hosted)
        for sizes, (piece, block, share) in SIZES.items():
            collectives.PIECE_BYTES["cpu"], mean.BLOCK_ELEMENTS = piece, block
            results[f"{name} {sizes}"] = average_of(hosted, replica_group, share)
            results[f"{name} {sizes} first only"] = average_of(hosted, replica_group, share, write="first")
            results[f"{name} {sizes} difference"] = average_of(hosted, replica_group, share, write="difference")
            results[f"{name} {sizes} inexact"] = average_of(hosted, replica_group, share, exact=False)
            same = equal_rows(hosted)
            averaged(same, replica_group, share)
            results[f"{name} {sizes} equal"] = same
            for exact in (True, False):
                results[f"{name} {sizes} squares {exact}"] = squares_of(hosted, replica_group, exact, share)
        first, last = rank == PLACEMENTS[placement][0], rank == PLACEMENTS[placement][-1]
        results[f"{name} shares"] = shares(group)
        results[f"{name} shares elsewhere"] = shares(group, "another machine" if last else None)
        results[f"{name} shares refused"] = shares(group, "no memory" if first else None)
    results["sent"] = broadcast_all(rank, groups[2, 3] if rank in PLACEMENTS[2, 3] else None)
    return results


def reals_of(replica: int) -> list[Tensor]:
    return [tensor for tensor in tensors_of(replica)[:-2] if not tensor.is_complex()]


def squares_of(hosted: range, replica_group: ReplicaGroup, exact: bool, share: bool = False) -> Tensor:
    rows = [reals_of(replica) for replica in hosted]
    squares = averaged(rows, replica_group, share, exact=exact, measure=True)
    assert squares is not None
    return squares


def shares(group: dist.ProcessGroup, what: str | None = None) -> bool:
    """Whether ranks share storage, one of which says that it runs elsewhere, or is granted no memory to share."""
    machine, truncate = shared_memory._machine, os.truncate
    try:
        if what == "another machine":
            shared_memory._machine = lambda: ("another", 1)
        if what == "no memory":
            os.truncate = refuse
        rows = Rows(ReplicaGroup.of(group, 1))
        rows.open([torch.zeros(3)], [])
        return len(rows.matrices[0].rows) == rows.replica_group.replicas
    finally:
        shared_memory._machine, os.truncate = machine, truncate


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def broadcast_all(rank: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    tensors = [*tensors_of(rank), torch.tensor([rank, 2**40 + rank]), torch.tensor([rank == 1, rank == 4])]
    broadcast_(tensors, group)
    return tensors


@cache
def on_six_ranks() -> list[dict[str, Any]]:
    """What each rank found; spawned once for all modules that ask."""
    return run(worker, 6)


def mean_by_hand(tensors: list[Tensor]) -> Tensor:
    """Python's floats (fp64), one at a time in replica order, divided, rounded once (half precision through fp32)."""
    first = tensors[0]
    if first.is_complex():
        return torch.complex(mean_by_hand([t.real for t in tensors]), mean_by_hand([t.imag for t in tensors]))
    columns = zip(*(t.flatten().tolist() for t in tensors), strict=True)
    if first.dtype == torch.float64:  # no wider float to sum in: the exact fraction, rounded once
        means = [float(sum(map(Fraction, column)) / len(column)) for column in columns]
        return torch.tensor(means, dtype=torch.float64).view(first.shape)
    means = []
    for column in columns:
        total = column[0]  # not from 0.0, which would make -0.0 positive
        for value in column[1:]:
            total += value
        means.append(total / len(column))
    return torch.tensor(means, dtype=torch.float64).float().to(first.dtype).view(first.shape)
