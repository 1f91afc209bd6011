"""The warning that torchrun will not wait for a checkpoint; tests/system/test_saving.py has the rest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lookaround_ddp.training.run import Run
from lookaround_ddp.training.saving import warn_of_slow_saving


@pytest.mark.parametrize(
    ("variables", "seconds", "said"),
    [
        ({"TORCHELASTIC_RUN_ID": "7"}, 14.0, []),
        ({}, 100.0, []),  # nobody kills it
        ({"TORCHELASTIC_RUN_ID": "7", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}, 50.0, []),
        ({"TORCHELASTIC_RUN_ID": "7"}, 16.4, ["takes 16 s to write, and torchrun kills ranks 30 s after a signal"]),
        (
            {"TORCHELASTIC_RUN_ID": "7", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"},
            61.0,
            ["takes 61 s to write, and torchrun kills ranks 120 s after a signal"],
        ),
    ],
)
def test_a_checkpoint_that_takes_half_of_what_torchrun_waits(
    variables: dict[str, str], seconds: float, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    record, checkpoints = SimpleNamespace(say=lines.append), SimpleNamespace(seconds=seconds)
    run: Any = SimpleNamespace(record=record, checkpoints=checkpoints, warned_of_saving=False)
    for _ in range(2):
        warn_of_slow_saving(cast(Run, run))
    assert len(lines) == len(said)
    assert all(
        part in line and "set TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in line for part, line in zip(said, lines, strict=True)
    )
