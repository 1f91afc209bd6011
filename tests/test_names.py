"""A name at the top of a file of the package stands for one thing: no other file has it too, private ones included."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lookaround_ddp"


IN_MANY = {"main", "__all__"}


def defined(text: str) -> Iterator[str]:
    """Yields the functions, classes and constants of a module."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


def shared(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the names that several files define, and these files."""
    places: dict[str, set[str]] = defaultdict(set)
    for file, text in files.items():
        for name in defined(text):
            places[name].add(file)
    return {name: sorted(found) for name, found in places.items() if len(found) > 1 and name not in IN_MANY}


def test_no_two_files_define_the_same_name() -> None:
    assert shared({str(path.relative_to(PACKAGE)): path.read_text() for path in PACKAGE.rglob("*.py")}) == {}


def test_the_checker_finds_what_is_defined_twice() -> None:
    one = "from x import run\nA, B = 1, 2\ndef main(): run()\nclass C:\n    D = 1\ndef _f():\n    E = 1"
    other = "from x import run\nB: int = 2\ndef main(): run()\nasync def C(): ...\nD = E = 1\n_f = len"
    assert shared({"one": one, "other": other}) == {name: ["one", "other"] for name in ("B", "C", "_f")}
