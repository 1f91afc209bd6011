"""The mean itself: the same bits wherever replicas live, whatever their dtypes, sizes and memory layouts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lookaround_ddp import exchange
from lookaround_ddp import members as places
from lookaround_ddp.exchange import average_, broadcast_, layout_of
from lookaround_ddp.members import Members
from tests.ranks import run, same_bits

pytestmark = pytest.mark.timeout(300)

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
# BUCKET_BYTES, BLOCK_ELEMENTS, through memory that the ranks share or by messages
SIZES = {
    "as shipped: one bucket": (places.BUCKET_BYTES, exchange.BLOCK_ELEMENTS, True),
    "as shipped: messages": (places.BUCKET_BYTES, exchange.BLOCK_ELEMENTS, False),
    "tiny": (256, 8, True),
    "tiny: messages": (1008, 7, False),
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


def average_of(hosted: range, members: Members, **options: Any) -> list[list[Tensor]]:
    """The rows after average_, as it leaves them; it must work in place and keep memory layouts."""
    layouts = [layout_of(tensor) for tensor in tensors_of(0)]
    rows = [tensors_of(replica) for replica in hosted]
    before = [(t.data_ptr(), t.stride()) for row in rows for t in row]
    average_(rows, layouts, members, **options)
    assert [(t.data_ptr(), t.stride()) for row in rows for t in row] == before
    return rows


def equal_rows(hosted: range) -> list[list[Tensor]]:
    reals = [torch.tensor(EQUAL, dtype=dtype) for dtype in EQUAL_DTYPES[:3]]
    return [[*(t.clone() for t in reals), torch.complex(reals[0], reals[0].flip(0))] for _ in hosted]


def worker(rank: int, ranks: int) -> dict[str, Any]:
    groups = {placement: dist.new_group(members) for placement, members in PLACEMENTS.items()}
    results: dict[str, Any] = {}
    for placement, group in groups.items():
        if rank not in PLACEMENTS[placement]:
            continue
        name = "{}x{}".format(*placement)
        for sizes, (bucket, block, share) in SIZES.items():
            places.BUCKET_BYTES, exchange.BLOCK_ELEMENTS = bucket, block
            members = Members(group, hosted=placement[1], share=share)
            hosted = range(members.rank * members.hosted, (members.rank + 1) * members.hosted)
            results[f"{name} {sizes}"] = average_of(hosted, members)
            results[f"{name} {sizes} first only"] = average_of(hosted, members, spread=False)
            results[f"{name} {sizes} inexact"] = average_of(hosted, members, exact=False)
            same = equal_rows(hosted)
            average_(same, [(0,)] * len(same[0]), members)
            results[f"{name} {sizes} equal"] = same
            for exact in (True, False):
                results[f"{name} {sizes} squares {exact}"] = squares_of(hosted, members, exact)
            results[f"{name} {sizes} channel"] = type(members.channel(torch.device("cpu"))).__name__
            results[f"{name} {sizes} elsewhere"] = channel_of_two_machines(group, rank == PLACEMENTS[placement][-1])
    results["sent"] = broadcast_all(rank, groups[2, 3] if rank in PLACEMENTS[2, 3] else None)
    return results


def reals_of(replica: int) -> list[Tensor]:
    return [tensor for tensor in tensors_of(replica)[:-2] if not tensor.is_complex()]


def squares_of(hosted: range, members: Members, exact: bool) -> Tensor:
    rows = [reals_of(replica) for replica in hosted]
    squares = average_(rows, [layout_of(t) for t in reals_of(0)], members, exact=exact, measured=len(rows[0]))
    assert squares is not None
    return squares


def channel_of_two_machines(group: dist.ProcessGroup, other: bool) -> str:
    """The last rank of the group says that it runs elsewhere."""
    machine = places._machine
    try:
        if other:
            places._machine = lambda: ("another", 1)
        return type(Members(group).channel(torch.device("cpu"))).__name__
    finally:
        places._machine = machine


def broadcast_all(rank: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    tensors = [*tensors_of(rank), torch.tensor([rank, 2**40 + rank]), torch.tensor([rank == 1, rank == 4])]
    broadcast_(tensors, group)
    return tensors


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return run(worker, 6)


def rows_of(on_ranks: list[dict[str, Any]], placement: tuple[int, int], what: str) -> list[list[Tensor]]:
    """All replicas' tensors, in replica order."""
    name = "{}x{}".format(*placement)
    rows = [row for rank in PLACEMENTS[placement] for row in on_ranks[rank][f"{name} {what}"]]
    assert len(rows) == placement[0] * placement[1]
    return rows


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
    alone = average_of(range(6), Members(None, hosted=6))
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
    average_(rows, [(0,)], Members(None, hosted=replicas))
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
    average_(rows, [(0,)], Members(None, hosted=3))
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


def test_broadcast_overwrites_every_dtype_and_layout(on_ranks: list[dict[str, Any]]) -> None:
    """The group is ranks 1 and 4, so rank 1 is its first; the other ranks pass no group and keep theirs."""
    for rank in range(6):
        source = 1 if rank == 4 else rank
        expected = broadcast_all(source, None)
        assert all(same_bits(a, b) for a, b in zip(on_ranks[rank]["sent"], expected, strict=True)), f"rank {rank}"
    assert on_ranks[4]["sent"][-2].tolist() == [1, 2**40 + 1]
    assert on_ranks[4]["sent"][-1].tolist() == [True, False]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: "{}x{}".format(*p))
def test_ranks_of_one_machine_share_memory_and_others_send_messages(
    on_ranks: list[dict[str, Any]], placement: tuple[int, int]
) -> None:
    name, alone = "{}x{}".format(*placement), placement[0] == 1
    for rank in PLACEMENTS[placement]:
        for sizes, (*_, share) in SIZES.items():
            expected = "SharedMemory" if share and not alone else "Messages"
            assert on_ranks[rank][f"{name} {sizes} channel"] == expected
            assert on_ranks[rank][f"{name} {sizes} elsewhere"] == "Messages"


@pytest.mark.parametrize("sizes", SIZES)
def test_squared_distances_have_the_same_bits_in_any_placement(on_ranks: list[dict[str, Any]], sizes: str) -> None:
    alone = squares_of(range(6), Members(None, hosted=6), True)
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
    rows = [[torch.tensor([3.0 * j]), torch.tensor([[4.0 * j]], dtype=torch.float64)] for j in range(3)]
    for measured, expected in ((2, [25, 0, 25]), (1, [9, 0, 9])):
        copies = [[tensor.clone() for tensor in row] for row in rows]
        squares = average_(copies, [(0,), (0, 1)], Members(None, hosted=3), measured=measured)
        assert squares is not None
        assert squares.tolist() == expected
    assert average_(rows, [(0,), (0, 1)], Members(None, hosted=3)) is None
