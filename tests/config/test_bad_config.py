"""Config files and values that are none, or that would burst when read: one line each, and no memory to speak of."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from lookaround_ddp.errors import UserError
from tests.support.runs import Job

NESTED = "nested more than 32 levels deep"
SELF = "an alias stands for what it is a part of"
BURST = "written out, its aliases stand for more than 131072 characters"


def laughs(name: str, before: str, after: str) -> str:
    """29 lines, each of which stands for ten times the one before: written out, 10^29 values."""
    lines = [f"{name}0: &a0 {before}x: 1{after}"]
    lines += [f"{name}{i}: &a{i} {before}<<: [{', '.join([f'*a{i - 1}'] * 10)}]{after}" for i in range(1, 30)]
    return "\n".join(lines)


VALUES = {  # of `model.options`, and what is said of them
    "deeply nested": ("[" * 60_000, NESTED),
    "deeper than allowed": ("[" * 33 + "]" * 33, NESTED),
    "an alias in itself": ("&a [*a]", SELF),
    "an alias in itself as a value": ("&a {b: *a}", SELF),
    "an alias that is merged into itself": ("&a {<<: *a}", SELF),
    "a billion laughs": (
        "{a: &a0 [x, x], " + ", ".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 31)) + "}",
        BURST,
    ),
    "aliases that nest": ("{a0: &a0 [x], " + ", ".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 40)) + "}", NESTED),
    "a long value": ("a" * 5000, "a value has 5000 characters, more than 4096"),
    "an integer of many digits": ("0x" + "f" * 4000, "an integer has more than 64 bits"),
    "a sum of sixties": ("1" + ":1" * 2000, "an integer has more than 64 bits"),
    "a NUL": (r'"a\0b"', "a value has characters that are none"),
    "half a character": (r'"a\ud800b"', "a value has characters that are none"),
    "bytes": ("!!binary aGVsbG8=", "a config has no values of the type !!binary"),
    "code": ("!!python/object/apply:os.abort []", "no values of the type !!python/object/apply:os.abort"),
    "a long tag": ("!" + "t" * 4000 + " 1", "could not determine a constructor for the tag"),
    "a control character": ("a\x01", "special characters are not allowed"),
}


def mistake(*arguments: object) -> str:
    """What is said of it: a line that is not long."""
    path, *overrides = map(str, arguments)
    with pytest.raises(UserError) as raised:
        load_config(path or None, overrides)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 800
    return str(raised.value)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_none(tmp_path: Path, name: str) -> None:
    """In a file, and on the command line."""
    value, message = VALUES[name]
    path = tmp_path / "config.yaml"
    path.write_text(f"model:\n  options: {value}\n")
    assert mistake(path).startswith(f"{path}: ")
    assert message in mistake(path)
    said = mistake("", f"model.options={value}")
    assert said.startswith("model.options=")
    assert message in said


def test_values_that_are_in_order(tmp_path: Path) -> None:
    """Aliases, merges and some nesting are YAML that people write."""
    path = tmp_path / "config.yaml"
    nested = "[" * 28 + "1" + "]" * 28
    path.write_text(f"optimizer: &o {{lr: 0.2, options: {{a: &l [1, 2], b: *l, c: {nested}}}}}\n")
    options = load_config(path).optimizer.options
    assert options["b"] == [1, 2]
    assert str(options["c"]) == nested
    path.write_text("optimizer: {<<: {lr: 0.2, momentum: 0.5}, lr: 0.3}\nout: '" + "a" * 4096 + "'\n")
    config = load_config(path, [f"seed={2**63 - 1}"])
    assert (config.optimizer.lr, config.optimizer.momentum, config.seed) == (0.3, 0.5, 2**63 - 1)


FILES = {  # the bytes of a file, and what is said of it
    "binary": (bytes(range(256)) * 40, "it is not UTF-8 text"),
    "UTF-16": ("seed: 1".encode("utf-16"), "it is not UTF-8 text"),
    "NULs": (b"seed: 1\n" + bytes(4096), "special characters are not allowed"),
    "50 MB": (b"# " * 25 * 2**20, "it has more than 131072 bytes, and a config has a few lines"),
    "merges that burst": (laughs("a", "{", "}").encode(), BURST),
    "indentation": ("\n".join(" " * level + "a:" for level in range(400)).encode(), NESTED),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
    "a number as a key": (b"1: 2\n", "1 is 1: Keys should be strings"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_config(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert message in mistake(path)


@pytest.mark.parametrize("content", [FILES["50 MB"][0], FILES["merges that burst"][0]], ids=["50 MB", "merges"])
def test_what_would_burst_takes_little_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        mistake(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_what_is_no_file(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"config {tmp_path}: Is a directory"
    assert "more than 131072 bytes" in mistake("/dev/zero")
    assert mistake("a" * 300).endswith(": File name too long")


def test_bases_without_end(tmp_path: Path) -> None:
    """A chain of 100 files is read, with one more it is not; nor 2^20 readings of 21 files."""
    for number in range(101):
        (tmp_path / f"chain{number}").write_text(f"base: chain{number + 1}\n" if number < 100 else "seed: 7\n")
    assert load_config(tmp_path / "chain1").seed == 7
    assert mistake(tmp_path / "chain0") == (
        f"config {tmp_path}/chain0: it is made of more than 100 files, counted with their bases"
    )
    for number in range(21):
        (tmp_path / f"tree{number}").write_text(f"base: [tree{number + 1}, tree{number + 1}]\n" if number < 20 else "")
    assert "it is made of more than 100 files" in mistake(tmp_path / "tree0")
    (tmp_path / "own").write_text("base: own")
    assert mistake(tmp_path / "own") == f"config {tmp_path}/own: it is its own base"
    (tmp_path / "folder").write_text("base: .")
    assert mistake(tmp_path / "folder").endswith(": Is a directory")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a." * 50_000 + "b=1", f"is {NESTED}"),
        ("a" * 100_000, "is not of the form key.path=value"),
        ("a" * 100_000 + "=1", "unknown key aaa"),
        ("seed.b." + "c" * 100_000 + "=1", "seed is {'b': {'ccc"),
        ("optimizer.lr=[" + "1.5, " * 20_000 + "]", "[... 99800 characters ...] 1.5, 1.5"),
        ("data.size=1000000000", "data.size is 1000000000: should be less than or equal to 16384"),
    ],
    ids=["levels", "no value", "key", "section", "list", "a size beyond all images"],
)
def test_long_values_are_echoed_without_their_middle(override: str, message: str) -> None:
    assert message in mistake("", override)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "."),
        ("train", "a" * 5000),
        ("train", "data.root=" + "a" * 4000, "data.name=cifar10"),
        ("train", "out=" + "a" * 4000),
        ("train", "no\nfile.yaml"),
        ("evaluate", "a" * 5000),
        ("evaluate", "a\nb"),
        ("report", "a" * 5000),
        ("soup", "."),
    ],
    ids=["a folder", "a long name", "a long root", "a long out", "a line break", "long", "a break", "report", "no run"],
)
def test_the_command_line_says_one_line(arguments: tuple[str, ...]) -> None:
    job = Job(*arguments)
    assert job.wait() == [2]
    (line,) = job.said().splitlines()
    assert line.startswith("error: ")
    assert len(line) < 2100
