"""A docstring of a function or method begins with a verb that says what it does: "Returns ...", "Averages ..."."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lookaround_ddp"


NO_VERBS = {"always", "as", "args", "is", "its", "perhaps", "sometimes", "this", "thus", "towards", "unless", "yes"}
NO_VERBS |= {"bytes", "images", "losses", "means", "milliseconds", "operations", "seconds", "states", "weights"}


def nouns(text: str) -> list[str]:
    """Returns the functions of a module whose docstring begins with another word, as "line: name: docstring"."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _is_property(node):
            continue
        docstring = ast.get_docstring(node)
        if docstring is not None and not _is_verb(docstring.split(maxsplit=1)[0]):
            found.append(f"{node.lineno}: {node.name}: {docstring.splitlines()[0]}")
    return found


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def _is_verb(word: str) -> bool:
    """Returns whether a word may be a verb in the third person; English has too many verbs to list."""
    word = word.rstrip(",:;.")
    return word.isalpha() and word[0].isupper() and word.endswith("s") and word.lower() not in NO_VERBS


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_docstring_begins_with_a_verb(path: Path) -> None:
    assert nouns(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('def f():\n    """Returns the mean of the replicas."""', 0),
        ('def f():\n    """The mean of the replicas."""', 1),
        ('def f():\n    """Whether torchrun started this process."""', 1),
        ('def f():\n    """Return the mean."""', 1),
        ('def f():\n    """Milliseconds of each call."""', 1),
        ('def f():\n    """\n    Args:\n        times: in seconds.\n    """', 1),
        ("def f():\n    return 1", 0),
        ('class A:\n    """A run."""\n    @property\n    def name(self):\n        """The name."""', 0),
        ('class A:\n    async def name(self):\n        """The name."""', 1),
    ],
)
def test_the_checker_knows_a_verb_from_a_noun(source: str, count: int) -> None:
    assert len(nouns(source)) == count
