"""Weights & Biases, offline: a run that was stopped and goes on is one run there, and no process of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import EVERY, TINY, Job, die_at, train

# 10 iterations in 2 epochs, a line after each; scores after 5 and 10
CONFIG = (*TINY, "record.every=1", "record.wandb=offline", "evaluate.every=1", "checkpoint.grace_seconds=0.001")


def records(log: Path) -> Iterator[Any]:
    """What a .wandb file holds: 7 bytes, then LevelDB's log format (blocks of 32 KiB; checksum, length, kind)."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = log.read_bytes(), 7, b""
    while place + 7 < len(content):
        if 2**15 - place % 2**15 < 7:  # no room for a head
            place += 2**15 - place % 2**15
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield Record.FromString(whole)
            whole = b""


def history(log: Path) -> dict[int, dict[str, Any]]:
    """Step -> what was told of it; a step occurs once."""
    found: dict[int, dict[str, Any]] = {}
    for record in records(log):
        if record.HasField("history"):
            line = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            assert line["_step"] not in found
            found[line["_step"]] = line
    return found


def fragments(out: Path) -> list[Path]:
    """The .wandb files of a run's starts, in order, all of one id."""
    logs = sorted(out.glob("wandb/offline-run-*/run-*.wandb"))
    assert {log.name for log in logs} == {f"run-{(out / 'wandb-id').read_text()}.wandb"}
    assert {r.run.run_id for log in logs for r in records(log) if r.HasField("run")} <= {(out / "wandb-id").read_text()}
    return logs


def services(pid: int) -> list[int]:
    """The processes that Weights & Biases started for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if "wandb-core" in command and f"\0--pid\0{pid}\0" in command:
            found.append(int(path.parent.name))
    return found


def wait_for_services(pid: int, there: bool) -> None:
    deadline = time.monotonic() + TEST_TIMEOUT
    while bool(services(pid)) != there:
        assert time.monotonic() < deadline, services(pid)
        time.sleep(0.1)


def test_a_preempted_run_goes_on_as_the_same_one(tmp_path: Path) -> None:
    """Each line is told once; the first part ends as preempted, the second well."""
    out = tmp_path / "run"
    death = partial(die_at, 4, EVERY, death=signal.SIGTERM)
    job = Job("train", f"out={out}", *CONFIG, ranks=3, prepare=death)
    pid = job.processes[0].pid
    assert pid is not None
    wait_for_services(pid, there=True)
    assert job.wait() == [143] * 3, job.said()
    wait_for_services(pid, there=False)
    command = [sys.executable, "-m", "lookaround_ddp", "train", f"out={out}", *CONFIG]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for_services(process.pid, there=True)
        said, _ = process.communicate(timeout=TEST_TIMEOUT)
    assert process.returncode == 0, said
    assert services(process.pid) == []

    first, second = fragments(out)
    assert list(history(first)) == [1, 2, 3, 4, 5]
    assert list(history(second)) == [6, 7, 8, 9, 10]
    told = history(first) | history(second)
    for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines()):
        if "loss" in line:
            assert [told[line["iteration"]][f"loss/{replica}"] for replica in range(3)] == line["loss"]
        else:
            place, prefix = (line["final"], "final/") if "final" in line else (line, "")
            assert told[line["iteration"]][f"{prefix}mean/top1"] == place["mean"]["top1"]
    assert ["mean/top1" in told[step] for step in (4, 5, 9, 10)] == [False, True, False, True]
    ends = [[record for record in records(log) if record.HasField("exit")] for log in (first, second)]
    assert [record.exit.exit_code for each in ends for record in each] == [1, 0]
    assert [any(r.HasField("preempting") for r in records(log)) for log in (first, second)] == [True, False]


def test_a_killed_run_goes_on_behind_its_checkpoint_and_leaves_no_process(tmp_path: Path) -> None:
    """Weights & Biases may lose what it was told in the last seconds before rank 0 was killed; metrics.jsonl has it."""
    out = tmp_path / "run"
    config = (*CONFIG, "checkpoint.every=0.4")
    job = Job("train", f"out={out}", *config, ranks=3, prepare=partial(die_at, 7, 0))
    pid = job.processes[0].pid
    assert pid is not None
    wait_for_services(pid, there=True)
    assert job.wait()[0] == -signal.SIGKILL
    wait_for_services(pid, there=False)
    assert "resumed after iteration 6" in train(out, *config)
    first, second = fragments(out)
    assert set(history(first)) <= {1, 2, 3, 4, 5, 6, 7}
    assert list(history(second)) == [7, 8, 9, 10]
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, 11))


def test_the_service_is_killed_and_the_training_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONFIG, "epochs=40", ranks=1)
    pid = job.processes[0].pid
    assert pid is not None
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_text().count("\n") < 3:
        assert job.processes[0].is_alive(), job.said()
        time.sleep(0.02)
    (service,) = services(pid)
    os.kill(service, signal.SIGKILL)
    assert job.wait() == [0], job.said()
    assert job.said().count(f"recording goes on in {out} alone") == 1
    assert (out / "metrics.jsonl").read_text().count('"loss"') == 200
