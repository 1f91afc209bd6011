"""A small finished run, and one that was stopped, for tests of what lies in their folders."""

from __future__ import annotations

from tests.support.runs import TINY

CONFIG = (*TINY, "checkpoint.every=0.4", "checkpoint.keep=3", "record.every=1")  # a checkpoint each 2 of 10 iterations


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]
