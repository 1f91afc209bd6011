"""What a finished run left is kept in a folder of its own, whole, wherever the process is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookaround_ddp.checkpoint import ended, read_result, write_result
from lookaround_ddp.checkpoint.ended import set_aside
from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config
from lookaround_ddp.files import write_atomically

CONFIG: dict[str, Any] = {"average": {"k": "never"}, "replicas": [["none"], ["hflip"]]}
STAYS = {"config.yaml", "metrics.jsonl", "best.safetensors"}
LEFT = ("model.safetensors", "members/0.safetensors", "members/1.safetensors", "curves.png", "result.json")


def finished(folder: Path) -> tuple[Config, dict[str, str]]:
    """A finished run, with the contents of its files by their names."""
    config = make_config(CONFIG | {"out": str(folder)})
    (folder / "members").mkdir(parents=True)
    for name in {*STAYS, *LEFT} - {"result.json"}:
        (folder / name).write_text(f"the run's {name}")
    write_result(config, {"iterations": 10})
    return config, contents(folder)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def aside(config: Config) -> Path:
    result = read_result(Path(config.out))
    assert result is not None
    return set_aside(config, result)


class Killed(BaseException):
    pass


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises instead of the step of that number: each changes something on the disk."""
    done = 0

    def counted(do: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: Any, **options: Any) -> object:
            nonlocal done
            done += 1
            if done > step:
                raise Killed
            return do(*arguments, **options)

        return counting

    monkeypatch.setattr(ended, "link", counted(ended.link))
    for name in ("rename", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


# what a killed process left goes, 8 files are linked, what has the folder's name goes, it gets it, and 5 files go
STEPS = 1 + 8 + 1 + 1 + 5


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_killed_anywhere(tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    config, before = finished(run)
    assert before.keys() == {*STAYS, *LEFT}
    with monkeypatch.context() as patched:
        kill_at(step, patched)
        if step < STEPS:
            with pytest.raises(Killed):
                aside(config)
        else:
            aside(config)
    places = [run, *run.glob("ended-*")]
    assert any(contents(place).items() >= before.items() for place in places), "all is in one place"
    if step < STEPS:
        assert aside(config) == run / "ended-10"
    assert contents(run / "ended-10") == before
    assert {name for name in contents(run) if "/" not in name or name in before} == STAYS
    assert read_result(run / "ended-10") is not None


def test_what_the_run_writes_next_is_not_in_it(tmp_path: Path) -> None:
    """The record goes on in a file of its own, though both have been one; a run that ends there again is newer."""
    config, before = finished(tmp_path / "run")
    folder = aside(config)
    write_atomically(tmp_path / "run" / "metrics.jsonl", b"more")
    assert contents(folder) == before
    (tmp_path / "run" / "model.safetensors").write_text("again")
    write_result(config, {"iterations": 10, "seconds": 2})
    assert contents(aside(config))["model.safetensors"] == "again"
