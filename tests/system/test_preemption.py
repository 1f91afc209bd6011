"""Signals: the ranks save after the same iteration and leave, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from lookaround_ddp.distributed.preemption import PreemptionHandler
from lookaround_ddp.distributed.world import World
from tests.support import processes
from tests.support.limits import TEST_TIMEOUT
from tests.support.processes import alive, descendants, kill, start
from tests.support.runs import EVERY, ROOT, TINY, Job, die_at, train, weights

# No checkpoint but those that a signal asks for; the ranks ask each other after each iteration
CONFIG = (*TINY, "checkpoint.every=99", "checkpoint.grace_seconds=0.001")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("preempt") / "run"
    train(out, *CONFIG)
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("ranks", "only"), [(1, 0), (3, 2), (3, EVERY)])
def test_all_ranks_save_and_leave(
    undisturbed: Path, tmp_path: Path, number: signal.Signals, ranks: int, only: int
) -> None:
    """The signal comes in iteration 4, in the middle of a round, to one rank or to all."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=ranks, prepare=partial(die_at, 4, only, death=number))
    assert job.wait() == [128 + number] * ranks, job.said()
    line = f"{number.name}: saved after iteration 5; the same command goes on"
    assert job.said().splitlines().count(line) == 1
    assert "Traceback" not in job.said()
    assert (out / "PREEMPTED").read_text() == line + "\n"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["5"]
    assert "resumed after iteration 5" in train(out, *CONFIG, ranks=ranks)
    assert not (out / "PREEMPTED").exists()
    assert weights(out) == weights(undisturbed)


def test_a_signal_in_the_last_iteration_lets_the_run_end(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, ranks=3, prepare=partial(die_at, 9, 1, death=signal.SIGTERM))
    assert job.wait() == [0] * 3
    assert not (out / "PREEMPTED").exists()
    assert weights(out) == weights(undisturbed)


def test_ctrl_c_twice_leaves_at_once() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]  # a shell's & ignores SIGINT
    with PreemptionHandler(grace=1) as preemption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.caught == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def ends(period: int, iteration: int) -> bool:
    return iteration % period == 0


def test_the_ranks_ask_four_times_in_the_time_of_grace_where_rounds_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grace of 40 s and 1 s an iteration: every 10th, or the last end of a round of 7 before. Slow ones: each."""
    alone = World(0, 1, 1, torch.device("cpu"), "none")
    for seconds, period, expected in (
        (1.0, 7, [1, 7, 14, 21, 28]),
        (1.0, 50, [1, 11, 21, 31, 41, 50, 60]),
        (60, 7, None),
    ):
        now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: now)  # noqa: B023  # called in this turn of the loop alone
        preemption, asked = PreemptionHandler(grace=40), []
        preemption.start(0)
        for iteration in range(1, 30 if period == 7 else 65):
            now += seconds
            if iteration == preemption.next:
                asked.append(iteration)
            assert preemption.vote(iteration, partial(ends, period), alone, True) == (None, iteration in asked)
        assert asked == (expected or list(range(1, 30)))


def test_usr1_to_torchrun_reaches_the_ranks(undisturbed: Path, tmp_path: Path) -> None:
    """As a batch system sends it; workers of the loaders get it, too. torchrun itself then exits with 1."""
    out = tmp_path / "run"
    handled = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", handled]
    command += [
        "-m",
        "lookaround_ddp",
        "train",
        f"out={out}",
        *CONFIG,
        "epochs=2000",
        "data.workers=1",
        "data.pipeline=workers",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + TEST_TIMEOUT
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGUSR1)
        said, _ = process.communicate(timeout=TEST_TIMEOUT)
    finally:
        if process.poll() is None:
            process.kill()
    assert "SIGUSR1: saved after iteration" in said
    (name,) = (path.name for path in (out / "checkpoints").iterdir())
    assert f"after iteration {name}" in (out / "PREEMPTED").read_text()


def test_ranks_whose_torchrun_dies_while_they_start_do_not_train_without_it(tmp_path: Path) -> None:
    """They would meet each other, since one of them has the store."""
    job = start(tmp_path / "said.txt", f"out={tmp_path}/run", *TINY, "epochs=3000", ranks=3)
    deadline = time.monotonic() + TEST_TIMEOUT
    while len(family := descendants(job.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    family = descendants(job.pid)
    kill(job.pid)
    job.wait()
    try:
        while any(map(alive, family)):
            assert time.monotonic() < deadline + TEST_TIMEOUT, (tmp_path / "said.txt").read_text()
            time.sleep(0.2)
    finally:
        for pid in family:
            kill(pid)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_ctrl_c_twice_at_a_terminal_leaves_at_once(venv: Path, tmp_path: Path) -> None:
    """The ranks ask each other for a signal every few minutes; torchrun, which gets both, tells them of the first."""
    out = tmp_path / "run"
    config = (*TINY, "epochs=100000", "checkpoint.grace_seconds=2400", "record.every=5", "replicas=[[crop],[crop]]")
    command = ["bash", str(ROOT / "launch" / "torchrun.sh"), f"out={out}", *config]
    environment = {**os.environ, "VENV": str(venv), "NPROC": "2", "OMP_NUM_THREADS": "1"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", command, environment)
    family: list[int] = []
    said: list[bytes] = []
    threading.Thread(target=drain, args=(terminal, said), daemon=True).start()

    def left() -> str:
        """What is still there, and what it said last."""
        return "\n".join([*(processes.command(each) for each in family if alive(each)), b"".join(said[-50:]).decode()])

    try:
        wait_until(lambda: (out / "metrics.jsonl").exists() and "\n" in (out / "metrics.jsonl").read_text())
        family = descendants(pid)
        os.write(terminal, b"\x03")
        time.sleep(3)
        assert all(map(alive, family)), "the ranks left after one Ctrl-C, before they asked each other"
        os.write(terminal, b"\x03")
        wait_until(lambda: not any(map(alive, family)), left)
        statuses: list[int] = []

        def ended() -> bool:
            there, status = os.waitpid(pid, os.WNOHANG)
            statuses.extend([os.waitstatus_to_exitcode(status)] * (there == pid))
            return there == pid

        wait_until(ended)
        assert statuses == [130]
    finally:
        for each in (*family, pid) if any(map(alive, family)) else ():
            kill(each)
        os.close(terminal)


def drain(terminal: int, said: list[bytes]) -> None:
    """What a terminal shows must be read, or its programs stand still."""
    with contextlib.suppress(OSError):  # it was closed
        while read := os.read(terminal, 4096):
            said.append(read)


def wait_until(condition: Callable[[], bool], otherwise: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + TEST_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)
