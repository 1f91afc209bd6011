"""A rank that others wait for in vain is named, with what it was doing; nobody hangs."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lookaround_ddp.distributed.heartbeat import advice, describe_states, lost_connection, verdict
from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import TINY, Job

GONE = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def strike(victim: int, how: str, rank: int) -> None:
    """The victim stops being a good rank when it evaluates; the others have begun to."""
    if rank != victim:
        return
    from lookaround_ddp.evaluation.evaluator import Evaluator

    def shared(*_: Any) -> None:
        time.sleep(1.5)  # for a sign of life
        if how in GONE:
            os.kill(os.getpid(), GONE[how])
        elif how == "sleep":
            time.sleep(100)
        raise ValueError("it is broken")

    Evaluator.shared = shared  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("kill", "rank 1 gives no sign of life, last seen evaluating after iteration 10: it was killed, or is cut off"),
        ("stop", "rank 1 gives no sign of life, last seen evaluating after iteration 10: it was killed, or is cut off"),
        ("sleep", r"rank 1 is still evaluating after iteration 10, for \d+ s"),
        ("raise", r"rank 1 failed \(ValueError: it is broken\)"),
    ],
)
def test_the_rank_that_does_not_come_is_named(tmp_path: Path, how: str, what: str) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, "timeout=6", ranks=3, prepare=partial(strike, 1, how))
    others = [job.processes[rank] for rank in (0, 2)]
    for process in others:
        process.join(TEST_TIMEOUT)
    codes = [process.exitcode for process in others]
    job.processes[1].kill()
    job.wait()
    assert codes == [1, 1], job.said()
    expected = rf"stopped: ranks 0 and 2 waited in vain, evaluating after iteration 10 \(timeout 6 s\): {what} \("
    assert len(re.findall(expected, job.said(0))) == 1, job.said()
    mend = "Start the same command again" if how != "raise" else "Mend what ended rank 1 first: the same command would"
    assert f"). {mend}" in job.said(0).splitlines()[-1]
    assert "stopped" not in job.said(2)
    assert "Traceback" not in job.said(0) + job.said(2)


def die_before_the_first_beat(rank: int) -> None:
    from lookaround_ddp.distributed import rendezvous

    if rank == 1:
        rendezvous.Heartbeat = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[misc, assignment]


def test_a_rank_that_was_never_heard_of_is_named(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, "timeout=6", ranks=3, prepare=die_before_the_first_beat)
    assert job.wait() == [1, -signal.SIGKILL, 1], job.said()
    expected = r"stopped: ranks 0 and 2 waited in vain, starting \(timeout 6 s\): rank 1 gives no sign of life, last"
    assert re.match(expected, job.said(0).splitlines()[-1]), job.said()
    assert "stopped" not in job.said(2)


def stop_in_training(rank: int) -> None:
    """Rank 3 stands still when it begins iteration 5, in which its replica's other rank waits for its gradients."""
    from lookaround_ddp.training.replica import Replica

    step = Replica.step

    def stopping(self: Replica, batches: Any, iteration: int, rate: float) -> Any:
        if rank == 3 and iteration == 4:
            time.sleep(1.5)
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, batches, iteration, rate)

    Replica.step = stopping  # type: ignore[method-assign]


def test_the_ranks_of_a_replica_wait_no_longer_than_others(tmp_path: Path) -> None:
    """2 replicas on 4 ranks: rank 2 waits among the replica's ranks, 0 and 1 in the average step."""
    shared = ("replicas=[[crop],[rotation]]", "timeout=6")
    job = Job("train", f"out={tmp_path}/run", *TINY, *shared, ranks=4, prepare=stop_in_training)
    for process in job.processes[:3]:
        process.join(TEST_TIMEOUT)
    codes = [process.exitcode for process in job.processes[:3]]
    job.processes[3].kill()
    job.wait()
    assert codes == [1, 1, 1], job.said()
    assert "rank 3 gives no sign of life, last seen training iteration 5" in job.said()
    assert "Traceback" not in "".join(map(job.said, range(3)))


def test_without_rank_0_the_others_say_where_it_was(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, "timeout=6", ranks=3, prepare=partial(strike, 0, "kill"))
    assert job.wait() == [-signal.SIGKILL, 1, 1], job.said()
    for rank in (1, 2):
        assert re.search(
            r"stopped: rank 0 has ended, or its host cannot be reached: nobody answers at 127.0.0.1:\d+ \(",
            job.said(rank),
        )


def take_the_port(rank: int) -> None:
    """Another program listens where the ranks are to meet."""
    if rank == 0:
        taken = socket.create_server(("", int(os.environ["MASTER_PORT"])))
        KEPT.append(taken)


KEPT: list[socket.socket] = []


def test_a_port_in_use_is_a_users_mistake(tmp_path: Path) -> None:
    job = Job("train", f"out={tmp_path}/run", *TINY, "timeout=6", ranks=3, prepare=take_the_port)
    assert job.wait() == [2, 1, 1], job.said()
    port = re.search(
        r"error: port (\d+) of this host is in use, perhaps by another training: set MASTER_PORT", job.said(0)
    )
    assert port, job.said()
    assert "Traceback" not in job.said()
    assert not (tmp_path / "run").exists()


def state(doing: str, ended: str = "", alive: bool = True, seconds: float = 3.0) -> dict[str, Any]:
    return {"doing": doing, "ended": ended, "alive": alive, "seconds": seconds, "beats": 1}


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("Application timeout caused pair closure", True),
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:38807", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_errors_that_tell_of_other_ranks(message: str, lost: bool) -> None:
    assert lost_connection(RuntimeError(message)) == lost


def test_what_is_said_of_ranks() -> None:
    waited = state("averaging after iteration 5", "waited")
    slow = state("training iteration 5", seconds=31.4)
    assert verdict([slow, waited, waited], 1, 30) == (
        "ranks 1 and 2 waited in vain, averaging after iteration 5 (timeout 30 s): "
        "rank 0 is still training iteration 5, for 31 s",
        1,
    )
    message, speaker = verdict([waited, waited], 1, 30)
    assert (message.partition("): ")[2], speaker) == (
        "all of them did: the network between them failed, or one was slower than the timeout",
        0,
    )
    late = state("averaging after iteration 5", "came too late")
    assert verdict([late, waited, waited], 0, 30) == ("rank 0 came too late: the others had waited 30 s for it", 0)
    assert "rank 0 came too late" in verdict([late, waited, waited], 1, 30)[0]
    killed, own = state("averaging", alive=False), state("averaging", "failed (ValueError: it is broken)")
    assert advice([killed, waited, state("averaging", "left (KeyboardInterrupt)")]) == "Start the same command again"
    assert advice([own, waited, state("averaging", "left (SystemExit: 7)")]) == (
        "Mend what ended ranks 0 and 2 first: the same command would come to it again"
    )
    assert describe_states([waited, slow, waited]) == (
        "ranks 0 and 2: averaging after iteration 5; rank 1: training iteration 5"
    )


def test_errors_of_collectives_are_told_from_others() -> None:
    gloo = "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation to complete"
    assert lost_connection(RuntimeError(gloo))
    assert not lost_connection(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert not lost_connection(ValueError(gloo))
