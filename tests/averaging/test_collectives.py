"""The mean itself: the same bits wherever replicas live, whatever their dtypes, sizes and memory layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lookaround_ddp.averaging.replica_group import ReplicaGroup
from tests.support.exchanges import (
    EQUAL,
    EQUAL_DTYPES,
    PLACEMENTS,
    SIZES,
    average_of,
    averaged,
    equal_rows,
    mean_by_hand,
    on_six_ranks,
    tensors_of,
)
from tests.support.ranks import same_bits


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return on_six_ranks()


def rows_of(on_ranks: list[dict[str, Any]], placement: tuple[int, int], what: str) -> list[list[Tensor]]:
    """All replicas' tensors, in replica order."""
    name = "{}x{}".format(*placement)
    rows = [row for rank in PLACEMENTS[placement] for row in on_ranks[rank][f"{name} {what}"]]
    assert len(rows) == placement[0] * placement[1]
    return rows


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{}x{}".format(*p))
def test_mean_is_the_fp64_sum_in_replica_order_rounded_once(
    on_ranks: list[dict[str, Any]], placement: tuple[int, int], sizes: str
) -> None:
    rows = rows_of(on_ranks, placement, sizes)
    columns = zip(*(tensors_of(replica) for replica in range(len(rows))), strict=True)
    for number, values in enumerate(columns):
        expected = mean_by_hand(list(values))
        for row in rows:
            if expected.dtype == torch.float64:
                torch.testing.assert_close(row[number], expected, rtol=0, atol=1e-15)
            else:
                assert same_bits(row[number], expected), f"tensor {number}"


def test_six_replicas_have_the_same_bits_in_any_placement(on_ranks: list[dict[str, Any]]) -> None:
    alone = average_of(range(6), ReplicaGroup(None, (6,)))
    for placement in [(1, 6), (2, 3), (3, 2), (6, 1)]:
        for sizes in SIZES:
            for row in rows_of(on_ranks, placement, sizes):
                assert all(same_bits(a, b) for a, b in zip(row, alone[0], strict=True)), (placement, sizes)


def test_the_order_is_that_of_the_replicas(on_ranks: list[dict[str, Any]]) -> None:
    """2^80, -2^80, 1, 1, 1, 1: 4 / 6 in this order; 0 from the other end."""
    for placement in [(1, 6), (2, 3), (3, 2), (6, 1)]:
        for sizes in SIZES:
            means = torch.stack([row[-1] for row in rows_of(on_ranks, placement, sizes)])
            assert same_bits(means, torch.full((6, 5), 4 / 6))


def test_a_plain_fp32_sum_would_have_other_bits() -> None:
    """So the bitwise comparisons above can tell an exact mean from an ordinary one."""
    values = [tensors_of(replica)[0] for replica in range(6)]
    assert not same_bits(sum(values) / 6, mean_by_hand(values))
    backwards = [sum(values[::-1]) / 6, sum(values) / 6]
    assert not same_bits(*backwards)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("placement", [(1, 6), (2, 3), (6, 1)], ids=lambda p: "{}x{}".format(*p))
def test_the_mean_goes_to_the_first_hosted_replica_only(
    on_ranks: list[dict[str, Any]], placement: tuple[int, int], sizes: str
) -> None:
    means = rows_of(on_ranks, placement, sizes)[0]
    for replica, row in enumerate(rows_of(on_ranks, placement, f"{sizes} first only")):
        expected = means if replica % placement[1] == 0 else tensors_of(replica)
        assert all(same_bits(a, b) for a, b in zip(row, expected, strict=True)), f"replica {replica}"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("placement", [(1, 6), (2, 3), (6, 1)], ids=lambda p: "{}x{}".format(*p))
def test_the_difference_leads_from_a_replica_to_the_mean(
    on_ranks: list[dict[str, Any]], placement: tuple[int, int], sizes: str
) -> None:
    means = rows_of(on_ranks, placement, sizes)[0]
    for replica, row in enumerate(rows_of(on_ranks, placement, f"{sizes} difference")):
        for difference, mean, value in zip(row, means, tensors_of(replica), strict=True):
            assert same_bits(difference, mean - value), f"replica {replica}"


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{}x{}".format(*p))
def test_averaging_equal_replicas_changes_no_bit(on_ranks: list[dict[str, Any]], placement: tuple[int, int]) -> None:
    (start,) = equal_rows(range(1))
    for sizes in SIZES:
        for row in rows_of(on_ranks, placement, f"{sizes} equal"):
            assert all(same_bits(a, b) for a, b in zip(row, start, strict=True)), sizes


@pytest.mark.parametrize("dtype", EQUAL_DTYPES)
@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7, 10])
def test_averaging_equal_hosted_replicas_changes_no_bit(replicas: int, dtype: torch.dtype) -> None:
    rows = [[torch.tensor(EQUAL).to(dtype)] for _ in range(replicas)]
    start = rows[0][0].clone()
    averaged(rows, ReplicaGroup(None, (replicas,)), False)
    assert all(same_bits(row[0], start) for row in rows)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.complex64,
        torch.float64,
    ],
)
def test_averaging_negative_zeros_leaves_them_negative(dtype: torch.dtype) -> None:
    rows = [[torch.tensor([-0.0]).to(dtype)] for _ in range(3)]
    start = rows[0][0].clone()
    averaged(rows, ReplicaGroup(None, (3,)), False)
    assert all(same_bits(row[0], start) for row in rows)


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{}x{}".format(*p))
def test_inexact_mean_is_close_and_the_same_on_all_ranks(
    on_ranks: list[dict[str, Any]], placement: tuple[int, int]
) -> None:
    for sizes in SIZES:
        rows = rows_of(on_ranks, placement, f"{sizes} inexact")
        all_but_the_last = (tensors_of(replica)[:-1] for replica in range(len(rows)))  # the last asks for an order
        for number, values in enumerate(zip(*all_but_the_last, strict=True)):
            half = values[0].dtype in (torch.float16, torch.bfloat16)  # their sums round at 2**-11 and 2**-8
            expected = mean_by_hand(list(values))
            torch.testing.assert_close(rows[0][number], expected, rtol=0, atol=0.05 if half else 1e-6)
            assert all(same_bits(row[number], rows[0][number]) for row in rows), f"tensor {number}"
