"""A printed table: figures on the right, text on the left, and narrow only where that is allowed."""

from __future__ import annotations

import pytest

from lookaround_ddp.tables import print_table


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [["a", "10"], ["bcdef", "7"], ["g"]], width=40)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.strip(" ─")] == [" name     n", " a       10", " bcdef    7", " g"]


def test_only_the_columns_that_may_wrap_do(capsys: pytest.CaptureFixture[str]) -> None:
    row = ["some words", "123456"]
    print_table(("a", "b"), [row], wrapped=(0,), width=16)
    assert "123456" in (out := capsys.readouterr().out)
    assert "some words" not in out
    print_table(("a", "b"), [row], width=40)
    assert "some words" in capsys.readouterr().out


def test_cells_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a",), [["[red]fox[/red] :fox:"]], width=40)
    assert "[red]fox[/red] :fox:" in capsys.readouterr().out
