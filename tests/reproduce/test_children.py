"""Commands in processes of their own, and the signals that they are told of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookaround_ddp.reproduce.children import run_child
from tests.support.limits import TEST_TIMEOUT

# Says that it is there; ends with status 7 when it has been told by SIGTERM or SIGINT, which it writes down.
LISTENS = """
import pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
def leave(number, frame):
    (here / "told").write_text(signal.Signals(number).name)
    sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, leave)
(here / "there").touch()
signal.pause()
"""


def when(there: Path, do: Callable[[], object]) -> None:
    """Does something in another thread once there is this file."""

    def wait() -> None:
        deadline = threading.Event()
        while not there.exists():
            deadline.wait(0.02)
        do()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(("code", "status"), [("0", 0), ("3", 3), ("-9", 137)])
def test_the_exit_status_is_a_shells(code: str, status: int) -> None:
    program = f"import os, sys; os.kill(os.getpid(), 9) if {code} < 0 else sys.exit({code})"
    assert run_child([sys.executable, "-c", program], os.environ) == status


@pytest.mark.timeout(TEST_TIMEOUT)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_and_end_this_process_after_the_child(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda file: False)
    when(tmp_path / "there", lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        run_child([sys.executable, "-c", LISTENS, str(tmp_path)], os.environ)
    if isinstance(ended.value, SystemExit):
        assert ended.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "told").read_text() == number.name
    assert signal.getsignal(number) == before


@pytest.mark.timeout(TEST_TIMEOUT)
def test_a_signal_that_comes_while_the_child_is_started_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(SystemExit) as ended:
        run_child([sys.executable, "-c", "import signal; signal.pause()"], os.environ)
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.timeout(TEST_TIMEOUT)
def test_an_interrupt_at_a_terminal_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal tells every process itself; a second one would make the ranks leave at once."""
    monkeypatch.setattr(os, "isatty", lambda file: True)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()

    when(tmp_path / "there", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", LISTENS, str(tmp_path)], os.environ)
    assert (tmp_path / "told").read_text() == "SIGTERM"


def test_a_child_that_was_interrupted_itself() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", "raise SystemExit(130)"], os.environ)
