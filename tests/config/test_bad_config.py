"""Config files and values that are none: one line each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from lookaround_ddp.errors import UserError
from tests.support.runs import Job

VALUES = {  # of `model.options`, and what is said of them
    "code": ("!!python/object/apply:os.abort []", "tag 'tag:yaml.org,2002:python/object/apply:os.abort'"),
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
    path.write_text("optimizer: &o {lr: 0.2, options: {a: &l [1, 2], b: *l, c: [[3]]}}\n")
    options = load_config(path).optimizer.options
    assert options["b"] == [1, 2]
    assert options["c"] == [[3]]
    path.write_text("optimizer: {<<: {lr: 0.2, momentum: 0.5}, lr: 0.3}\n")
    config = load_config(path, [f"seed={2**63 - 1}"])
    assert (config.optimizer.lr, config.optimizer.momentum, config.seed) == (0.3, 0.5, 2**63 - 1)


FILES = {  # the bytes of a file, and what is said of it
    "binary": (bytes(range(256)) * 40, "it is not UTF-8 text"),
    "UTF-16": ("seed: 1".encode("utf-16"), "it is not UTF-8 text"),
    "NULs": (b"seed: 1\n" + bytes(4096), "special characters are not allowed"),
    "a list without end": (b"seed: 1\nreplicas: [\n", "line 3, column 1"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
    "a number as a key": (b"1: 2\n", "1 is 1: Keys should be strings"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_config(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert message in mistake(path)


TWICE = {  # what is said of a key that stands twice, after its file's name
    "seed: 1\noptimizer: {lr: 1}\nout: x\noptimizer: {momentum: 0}\n": "optimizer stands twice, in lines 2 and 4: ",
    "seed: 1\n'seed': 2\n": "seed stands twice, in lines 1 and 2: keep one of them",
    "seed: 1\nmodel:\n  options:\n    a: 1\n    a: 1\n": "a stands twice, in lines 4 and 5: ",
    "optimizer: {lr: 0.1,\n lr: 0.2}\n": "lr stands twice, in lines 1 and 2: ",
    "optimizer: {lr: 0.1, lr: 0.2}\n": "lr stands twice, in line 1: keep one of them",
    "optimizer: &o {lr: 1}\naugment:\n  <<: *o\n  <<: *o\n": "<< stands twice, in lines 3 and 4: ",
    "recipe: soup\nof: [a]\nof: [b]\n": "of stands twice, in lines 2 and 3: ",
}


@pytest.mark.parametrize("content", TWICE)
def test_a_key_that_stands_twice(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert mistake(path).startswith(f"{path}: {TWICE[content]}")
    (tmp_path / "above.yaml").write_text("base: config.yaml")
    assert mistake(tmp_path / "above.yaml").startswith(f"{path}: ")


def test_pairs_with_the_same_key() -> None:
    """The last one counts, as in other command lines; but none is lost with the section that it stands in."""
    assert load_config(None, ["seed=1", "optimizer.lr=0.2", "seed=2", "optimizer.lr=0.3"]).seed == 2
    assert load_config(None, ["optimizer={name: adam}", "optimizer.lr=0.3"]).optimizer.lr == 0.3
    assert load_config(None, ["optimizer={lr: 0.2}", "optimizer={name: adam}"]).optimizer.lr == 0.1
    said = mistake("", "optimizer.lr=0.3", "optimizer={name: adam}")
    assert said == "optimizer.lr would be lost, since optimizer={name: adam} stands after it: put that first"
    assert mistake("", "optimizer={lr: 0.1, lr: 0.2}").endswith("lr stands twice, in line 1: keep one of them")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert mistake(tmp_path) == f"config {tmp_path}: Is a directory"
    assert mistake("a" * 300).endswith(": File name too long")


def test_bases_without_end(tmp_path: Path) -> None:
    (tmp_path / "own").write_text("base: own")
    assert mistake(tmp_path / "own") == f"config {tmp_path}/own: it is its own base"
    (tmp_path / "one").write_text("base: two")
    (tmp_path / "two").write_text("base: one")
    assert mistake(tmp_path / "one") == f"config {tmp_path}/one: it is its own base"
    (tmp_path / "folder").write_text("base: .")
    assert mistake(tmp_path / "folder").endswith(": Is a directory")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a" * 100_000, "is not of the form key.path=value"),
        ("a" * 100_000 + "=1", "unknown key aaa"),
        ("seed.b." + "c" * 100_000 + "=1", "seed is {'b': {'ccc"),
        ("optimizer.lr=[" + "1.5, " * 20_000 + "]", "[... 99800 characters ...] 1.5, 1.5"),
        ("data.size=1000000000", "data.size is 1000000000: should be less than or equal to 16384"),
    ],
    ids=["no value", "key", "section", "list", "a size beyond all images"],
)
def test_long_values_are_echoed_without_their_middle(override: str, message: str) -> None:
    assert message in mistake("", override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["average.outer.lr=0"], "average.outer.lr is 0: should be greater than 0"),
        (["average.outer={momentum: 1}"], "average.outer.momentum is 1: should be less than 1"),
        (["average.outer.nestrov=true"], "unknown key average.outer.nestrov: did you mean average.outer.nesterov?"),
        (["average.nodes={size: 1, k: 10}"], "average.nodes.size is 1: should be greater than or equal to 2"),
        (["average.nodes={size: 2, k: never}"], "average.nodes.k is 'never': it should be an integer, epoch or"),
        (["average.nodes={size: 2}"], "average.nodes.k is missing"),
        (["average.outer={}", "average.delay=1"], "so not with average.delay=1"),
        (["average.outer={}", "average.k=never"], "so not with average.k=never"),
        (["average.outer={}", "replicas=[[crop]]"], "so not with one replica (optimizer.lookahead is for that)"),
    ],
)
def test_averages_that_cannot_be(overrides: list[str], message: str) -> None:
    assert message in mistake("", *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.std=[0]", "data.std.0 is 0: should be greater than or equal to 0.0001"),
        ("data.std=[-0.5]", "data.std.0 is -0.5: should be greater than"),
        ("data.std=[.nan]", "data.std.0 is nan: should be a finite number"),
        ("data.mean=[123.675]", "data.mean.0 is 123.675: should be less than or equal to 1"),
        (f"seed={2**63}", f"seed is {2**63}: should be less than {2**63}"),
        ("average.start=1e308", "average.start is 1e+308: should be less than or equal to 1000000000"),
        ("evaluate.every=1e308", "evaluate.every is 1e+308: should be less than"),
        ("checkpoint.every=1e308", "checkpoint.every is 1e+308: should be less than"),
        ("timeout=1e308", "timeout is 1e+308: should be less than or equal to 10000000"),
        ("out=~nobody-of-that-name/x", "out is '~nobody-of-that-name/x': there is no such home; a folder of that name"),
        ("schedule.milestones=[-5]", "schedule.milestones.0 is -5: should be greater than or equal to 0"),
        ("replicas=[[hflip], [{}]]", "give at least one replica, and each at least one augmentation ('none' for no ch"),
        ("out=''", "out is '': String should have at least 1 character"),
    ],
)
def test_numbers_that_mean_nothing(override: str, message: str) -> None:
    assert message in mistake("", override)


def test_a_home_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    config = load_config(None, ["out=~/runs/x", "data.root='~'"])
    assert (config.out, config.data.root) == ("/home/anna/runs/x", "/home/anna")
    assert load_config(None, ["model.pretrained=~/w.pt", "out=a~b"]).model.pretrained == "/home/anna/w.pt"
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("seed: 7\n")
    (tmp_path / "config.yaml").write_text("base: ~/base.yaml\n")
    assert load_config(tmp_path / "config.yaml").seed == 7


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


def test_more_snapshots_than_iterations() -> None:
    """Where the run's length is in iterations, no data is needed to tell."""
    values = ["snapshots=true", "schedule.cycles=9"]
    assert mistake("", *values, "iterations=8") == "schedule.cycles is 9: the run has no more than 8 iterations"
    assert load_config(None, [*values, "iterations=9"]).schedule.cycles == 9
