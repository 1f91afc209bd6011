"""Tables that are printed on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Collection[int] = (0,),
    wrapped: Collection[int] = (),
    width: int | None = None,
) -> None:
    """Prints a table with one line under its headings, and no frame.

    Args:
        rows: cells, shown as they are; a row may have fewer than there are headings.
        left: the columns that are aligned on the left; figures are on the right.
        wrapped: the columns whose cells may take several lines where the terminal is too narrow.
        width: in characters; None takes the terminal's.
    """
    from rich import box  # not before a table is printed: every command imports this module
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number in left else "right", no_wrap=number not in wrapped)
    for row in rows:
        table.add_row(*map(Text, row))  # a name in [brackets] is no markup
    Console(width=width).print(table)
