"""What trackers are told: TensorBoard's own reader finds it again; a package that is missing ends nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from lookaround_ddp.training.record import Record
from lookaround_ddp.training.trackers import Trackers


def test_tensorboard_has_the_figures_once(tmp_path: Path) -> None:
    """A run that is killed after step 3, and goes on after 2: what it wrote of 3 is not shown any more."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = load_config(None, [f"out={tmp_path}", "record.tensorboard=true"])
    line = {"lr": 0.5, "loss": [1.0, 2.0], "distance": None, "final": {"mean": {"top1": 91.25}, "by": "test"}}
    first = Record(config, True, 4)
    first.open(0)
    for step in (1, 2, 3):
        first.final({"iteration": step, **line})
    again = Record(config, True, 4)
    again.open(2)
    again.final({"iteration": 3, **line, "lr": 0.25})
    again.close(None)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"iteration", "lr", "loss/0", "loss/1", "final/mean/top1"}
    assert [(event.step, event.value) for event in events.Scalars("lr")] == [(1, 0.5), (2, 0.5), (3, 0.25)]
    assert events.Scalars("final/mean/top1")[-1].value == 91.25


def test_without_the_package_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    said: list[str] = []
    trackers = Trackers(load_config(None, [f"out={tmp_path}", "record.tensorboard=true"]), 0, said.append)
    trackers.log({"lr": 0.5}, 1)
    trackers.finish(None)
    (line,) = said
    assert line.startswith("tensorboard: ")
    assert line.endswith(f"; `pip install tensorboard` brings the package: this run is recorded in {tmp_path} alone")
