"""The cost model of the average step: a line that is there is found, and the ring model's factors by hand."""

from __future__ import annotations

import pytest

from lookaround_ddp.bench.cost import Line, fit_line


def test_a_line_is_found() -> None:
    """1 ms and 100 MB/s."""
    sizes = [1e6, 4e6, 16e6, 64e6]
    line = fit_line(sizes, [0.001 + size / 1e8 for size in sizes], ranks=3)
    assert line.latency == pytest.approx(0.001)
    assert line.bandwidth == pytest.approx(1e8)
    assert line.seconds(200e6, 3) == pytest.approx(2.001)


def test_small_sizes_count_as_much_as_large_ones() -> None:
    """1 MB takes a millisecond more than 1 ms + 10 ms/MB, that is 9 %: the line bends to it, and not only by 0.2 ms."""
    line = fit_line([1e6, 32e6, 64e6], [0.012, 0.321, 0.641], ranks=2)
    assert line.seconds(1e6, 2) == pytest.approx(0.012, rel=0.01)
    assert line.seconds(64e6, 2) == pytest.approx(0.641, rel=0.01)


def test_no_term_is_negative() -> None:
    line = fit_line([1e6, 2e6], [0.001, 0.004], ranks=2)
    assert line.latency == 0
    assert fit_line([1e6, 2e6], [0.004, 0.001], ranks=2).bandwidth == float("inf")


@pytest.mark.parametrize(
    ("ranks", "seconds"),
    [
        (2, 0.5 * 0.003 + 0.75 * 1.2),  # (1 / 2) / (2 / 3)
        (3, 0.003 + 1.2),
        (4, 1.5 * 0.003 + 1.125 * 1.2),  # (3 / 4) / (2 / 3)
        (1024, 511.5 * 0.003 + 1023 / 1024 * 1.5 * 1.2),
        (1, 0.0),
    ],
)
def test_the_ring_model(ranks: int, seconds: float) -> None:
    assert Line(latency=0.003, bandwidth=1e8, ranks=3).seconds(120e6, ranks) == pytest.approx(seconds)
