"""The exit status of a job whose ranks were ended by a signal that torchrun did not get, and names of signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lookaround_ddp.distributed import agent, tell_agent
from lookaround_ddp.distributed.preemption import LEFT_FOR
from lookaround_ddp.errors import name_of_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, None])
def test_ranks_that_left_for_a_signal(number: signal.Signals | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """To torchrun, which would start them again, they are done; the job is not."""
    monkeypatch.setattr(agent, "parse_args", lambda arguments: arguments)
    monkeypatch.setattr(agent.threading.Thread, "start", lambda thread: None)
    monkeypatch.setattr(agent.signal, "pthread_sigmask", lambda *_: None)
    monkeypatch.setattr(agent.logging, "disable", lambda *_: None)
    monkeypatch.setenv(LEFT_FOR, "")
    places: list[Path] = []

    def run(_: object) -> None:
        places.append(Path(os.environ[LEFT_FOR]))
        if number is not None:
            tell_agent(number)

    monkeypatch.setattr(agent, "run", run)
    if number is None:
        agent.main([])
    else:
        with pytest.raises(SystemExit) as ended:
            agent.main([])
        assert ended.value.code == 128 + number
    assert not places[0].parent.exists()


def test_a_rank_without_an_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LEFT_FOR, raising=False)
    monkeypatch.chdir(tmp_path)
    tell_agent(signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_names_of_signals() -> None:
    assert name_of_signal(9) == "SIGKILL"
    assert name_of_signal(40) == "signal 40"  # a real-time signal
