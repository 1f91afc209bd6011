"""What `Checkpoints` writes: the digests of the very files, without reading one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lookaround_ddp.checkpoint.checkpoints import Checkpoints
from lookaround_ddp.distributed.world import World
from tests.support.ranks import same_state

ALONE = World(0, 1, 2, torch.device("cpu"), "none")


class Kept:
    """A part of a checkpoint: a network whose weights are tied and lie in memory in another order."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(600, 600), nn.Linear(600, 600))
        self.model[2].weight = self.model[1].weight
        self.model.to(memory_format=torch.channels_last)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])


def checkpoints(folder: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, keep, ALONE, print)


def test_digests_are_of_the_files_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"replica-0.pt": Kept(0), "replica-1.pt": Kept(1)}
    modes: list[str] = []
    opened = Path.open

    def watched(self: Path, mode: str = "r", *rest: Any) -> Any:
        modes.append(mode)
        return opened(self, mode, *rest)

    monkeypatch.setattr(Path, "open", watched)
    saving = checkpoints(tmp_path)
    saving.begin(3, parts, {})
    saving.finish()
    assert modes == ["xb"] * 4  # two parts, run.json, LATEST
    monkeypatch.undo()
    folder = tmp_path / "checkpoints" / "3"
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in parts}
    assert json.loads((folder / "run.json").read_text())["files"] == digests
    assert digests["replica-0.pt"] != digests["replica-1.pt"]
    read = {"replica-0.pt": Kept(2), "replica-1.pt": Kept(3)}
    checkpoints(tmp_path).restore(read, lambda state: None)
    for name, part in parts.items():
        assert same_state(read[name].model.state_dict(), part.model.state_dict())
        assert (folder / name).stat().st_size < 1.2 * 600 * 600 * 4  # the tied weight is in it once
