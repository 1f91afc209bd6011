"""Between the ranks: whether they share memory, what a broadcast overwrites, how far the replicas are apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lookaround_ddp.averaging.exchange import average_matrices_
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from lookaround_ddp.averaging.rows import Rows
from tests.support.exchanges import PLACEMENTS, SIZES, broadcast_all, mean_by_hand, on_six_ranks, reals_of, squares_of
from tests.support.ranks import same_bits


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return on_six_ranks()


def test_broadcast_overwrites_every_dtype_and_layout(on_ranks: list[dict[str, Any]]) -> None:
    """The group is ranks 1 and 4, so rank 1 is its first; the other ranks pass no group and keep theirs."""
    for rank in range(6):
        source = 1 if rank == 4 else rank
        expected = broadcast_all(source, None)
        assert all(same_bits(a, b) for a, b in zip(on_ranks[rank]["sent"], expected, strict=True)), f"rank {rank}"
    assert on_ranks[4]["sent"][-2].tolist() == [1, 2**40 + 1]
    assert on_ranks[4]["sent"][-1].tolist() == [True, False]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{}x{}".format(*p))
def test_ranks_of_one_machine_share_memory(on_ranks: list[dict[str, Any]], placement: tuple[int, int]) -> None:
    name, alone = "{}x{}".format(*placement), placement[0] == 1
    for rank in PLACEMENTS[placement]:
        assert on_ranks[rank][f"{name} shares"]
        assert on_ranks[rank][f"{name} shares elsewhere"] == alone
        assert on_ranks[rank][f"{name} shares refused"] == alone


@pytest.mark.parametrize("sizes", SIZES)
def test_squared_distances_have_the_same_bits_in_any_placement(on_ranks: list[dict[str, Any]], sizes: str) -> None:
    alone = squares_of(range(6), ReplicaGroup(None, (6,)), True)
    kinds = [reals_of(replica) for replica in range(6)]
    means = [mean_by_hand(list(values)) for values in zip(*kinds, strict=True)]
    by_hand = [
        sum(float((t.double() - mean.double()).square().sum()) for t, mean in zip(row, means, strict=True))
        for row in kinds
    ]
    torch.testing.assert_close(alone, torch.tensor(by_hand, dtype=torch.float64), rtol=1e-4, atol=0)
    for ranks, hosted in [(1, 6), (2, 3), (3, 2), (6, 1)]:
        for rank in PLACEMENTS[ranks, hosted]:
            exact, inexact = (on_ranks[rank][f"{ranks}x{hosted} {sizes} squares {how}"] for how in (True, False))
            assert same_bits(exact, on_ranks[2][f"1x6 {sizes} squares True"])
            torch.testing.assert_close(inexact, exact, rtol=1e-3, atol=0)


def test_squared_distances_are_of_each_replica_to_the_mean() -> None:
    """Columns 0, 3, 6 and 0, 4, 8 have the means 3 and 4; replicas 0 and 2 are 5 away, squared 25, replica 1 is 0."""
    for parameters, expected in ((2, [25, 0, 25]), (1, [9, 0, 9]), (0, [0, 0, 0])):
        for dtype in (torch.float32, torch.float64):  # one matrix, or two
            replicas = [[torch.tensor([3.0 * j]), torch.tensor([[4.0 * j]], dtype=dtype)] for j in range(3)]
            rows = Rows(ReplicaGroup(None, (3,)))
            rows.open(replicas[0][:parameters], replicas[0][parameters:])
            rows.take(replicas)
            squares = average_matrices_(rows.matrices, rows.replica_group, None, measure=True)
            assert squares is not None
            assert squares.tolist() == expected
            assert average_matrices_(rows.matrices, rows.replica_group, None) is None
