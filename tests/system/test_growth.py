"""What `python -m tests.growth` would find: a leak of memory or files after the warm-up, and not the warm-up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.growth import MB, Growth, Sample, growth, look


def series(resident: list[int], files: list[int]) -> list[Sample]:
    """Samples at iterations 0, 100, 200 ..."""
    return [
        Sample(100 * i, megabytes * MB, open_files)
        for i, (megabytes, open_files) in enumerate(zip(resident, files, strict=True))
    ]


@pytest.mark.parametrize(
    ("resident", "files", "grew"),
    [
        ([100, 300, 400, 401, 400, 401, 402, 401], [5, 9, 9, 9, 9, 9, 9, 9], False),  # 400 to 402 is warm
        ([100, 300, 400, 404, 408, 412, 416, 420], [9] * 8, True),  # 408 -> 416
        ([400] * 8, [5, 5, 9, 9, 10, 11, 16, 18], True),
        ([400] * 4 + [400, 400, 900, 400], [9, 9, 9, 9, 9, 9, 30, 11], False),  # came and went in the last quarter
    ],
)
def test_what_grows_after_the_warm_up(resident: list[int], files: list[int], grew: bool) -> None:
    found = growth(series(resident, files), total=800)
    assert found is not None
    assert found.exceeds(allowed=2) == grew


def test_the_least_of_the_third_and_the_last_quarter() -> None:
    found = growth(series([1, 2, 3, 3, 7, 5, 6, 8], [1, 1, 2, 3, 8, 9, 5, 4]), total=800)
    assert found == Growth(resident=(5 * MB, 6 * MB), files=(8, 4))


def test_a_process_that_came_late_tells_nothing() -> None:
    assert growth(series([1, 2], [1, 1]), total=800) is None


def test_a_look_at_this_process(tmp_path: Path) -> None:
    before = look(os.getpid(), 3)
    assert before is not None
    ballast = bytearray(64 * MB)
    ballast[::4096] = bytes([1]) * len(ballast[::4096])
    with (tmp_path / "file").open("w"):
        after = look(os.getpid(), 4)
    assert after is not None
    assert after.files == before.files + 1
    assert 60 * MB < after.resident - before.resident < 80 * MB
    assert len(ballast) == 64 * MB
