"""configs/README.md has every key of a config, with its default, type and meaning, as the code has them."""

from __future__ import annotations

from lookaround_ddp.config.reference import reference
from tests.support.runs import ROOT

README = (ROOT / "configs" / "README.md").read_text()


def test_the_readme_is_of_today() -> None:
    """`python -m lookaround_ddp.config.reference` prints what belongs there."""
    assert README.partition("compares the two.\n\n")[2].strip() == reference().strip()


def test_rows_by_hand() -> None:
    """One of each kind of type."""
    rows = reference().splitlines()
    for row in (
        "| `timeout` | `600` | number, > 0 | Seconds that ranks wait for each other before the job fails. |",
        "| `optimizer.nesterov` | `false` | true or false | Nesterov's form of sgd's momentum. |",
        "| `average.outer.momentum` | `0.9` | number, ≥ 0, < 1 | Share of the movement before that is kept. |",
        "| `schedule.name` | `cosine` | `constant`, `multistep` or `cosine` | How the learning rate falls. |",
        "| `average.outer.lr` | `0.7` | number, > 0 | Share of the movement that is taken, before momentum. |",
    ):
        assert row in rows
    assert any(row.startswith("| `average.nodes.size` | must be given | integer, ≥ 2 | ") for row in rows)
    assert "hide" not in reference(), "old configs have it, and it has no effect"


def test_every_key_has_a_meaning() -> None:
    assert [row for row in reference().splitlines() if row.endswith("|  |")] == []
