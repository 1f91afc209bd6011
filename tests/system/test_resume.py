"""Whatever is killed, whenever: the same command goes on, and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path

import pytest

from lookaround_ddp.checkpoint.run_folder import locked
from tests.support.runs import EVERY, TINY, Job, die_at, resumes, torchrun, train, weights

# 10 iterations, averages after 3, 6 and 9; a checkpoint after every second one, most of them in mid-round
CONFIG = (*TINY, "checkpoint.every=0.4", "checkpoint.keep=3", "data.workers=0", "record.every=1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(out, *CONFIG)
    return out


@pytest.mark.parametrize(
    ("iteration", "killed", "before", "after"),
    [(7, 1, 3, 3), (5, 0, 3, 1), (8, 2, 3, 3), (3, 0, 1, 3), (0, 1, 3, 3)],
)
def test_a_rank_is_killed(
    undisturbed: Path, tmp_path: Path, iteration: int, killed: int, before: int, after: int
) -> None:
    out = tmp_path / "run"
    last, _ = resumes(out, *CONFIG, ranks=before, killed_at=iteration, only=killed, on=after)
    assert last == iteration - iteration % 2  # the checkpoint before
    assert weights(out) == weights(undisturbed)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ctrl_c_is_one_line_and_the_same_command_goes_on(undisturbed: Path, tmp_path: Path, ranks: int) -> None:
    """A terminal sends SIGINT to every rank."""
    out = tmp_path / "run"
    prepare = partial(die_at, 5, EVERY, death=signal.SIGINT)
    job = Job("train", f"out={out}", *CONFIG, "checkpoint.grace_seconds=0.001", ranks=ranks, prepare=prepare)
    assert job.wait() == [130] * ranks, job.said()
    assert job.said().count("SIGINT: saved after iteration 6; the same command goes on\n") == 1
    assert "Traceback" not in job.said()
    train(out, *CONFIG, ranks=ranks)
    assert weights(out) == weights(undisturbed)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_folder_that_another_training_is_in(tmp_path: Path, ranks: int) -> None:
    """It ends with the process, whose number it tells, not with its children."""
    out = tmp_path / "run"
    out.mkdir()
    with locked(out):
        said = train(out, *CONFIG, ranks=ranks, expect=2)
        assert f"error: {out} is in use by process {os.getpid()} on {socket.gethostname()}: wait for it" in said
        assert sorted(os.listdir(out)) == [".lock"]
    after, _ = resumes(out, *CONFIG, "data.workers=1", ranks=ranks, killed_at=5)
    assert after == 4


def go_wrong(iteration: int, rank: int) -> None:
    """Makes rank 1 compute another mean than the others in the average step of this iteration."""
    from lookaround_ddp.averaging.lookaround import Lookaround

    step = Lookaround.step

    def wrong(self: Lookaround) -> bool:
        averaged = step(self)
        if rank == 1 and self.steps == iteration:
            next(self.models[0].parameters()).data.view(-1)[0] += 2**-20
        return averaged

    Lookaround.step = wrong


def test_a_rank_that_computes_wrongly_is_named(tmp_path: Path) -> None:
    """Rounds end after 3 and 6, an epoch after 5: the replicas are compared after 6."""
    job = Job("train", f"out={tmp_path}/run", *CONFIG, ranks=3, prepare=partial(go_wrong, 6))
    assert job.wait() == [1, 1, 1]
    said = "RuntimeError: after the average step of iteration 6 rank 1 has other weights than rank 0: look for a faulty"
    assert job.said().count(said) == 3


def test_metrics_have_each_iteration_once(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    resumes(out, *CONFIG, killed_at=7)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, 11))
    undisturbed_lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    for figure in ("loss", "distance", "lr"):
        assert [line[figure] for line in lines if "loss" in line] == [
            line[figure] for line in undisturbed_lines if "loss" in line
        ]


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "no run.json", "bad run.json"])
def test_a_damaged_checkpoint_is_passed_over(undisturbed: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    Job("train", f"out={out}", *CONFIG, prepare=partial(die_at, 9, 0)).wait()
    newest = out / "checkpoints" / "8"
    replica = newest / "replica-1.pt"
    content = bytearray(replica.read_bytes())
    if damage == "truncated":
        replica.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        replica.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        replica.write_bytes(content)
    elif damage == "no run.json":
        (newest / "run.json").unlink()
    else:
        (newest / "run.json").write_text((newest / "run.json").read_text().replace('"steps": 7', '"steps": 6'))
    said = train(out, *CONFIG, ranks=3)
    assert "checkpoint 8 is damaged" in said
    assert "resumed after iteration 6" in said
    assert weights(out) == weights(undisturbed)


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Job("train", f"out={out}", *CONFIG, prepare=partial(die_at, 5, 0)).wait()
    for path in out.rglob("replica-0.pt"):
        path.write_bytes(b"")
    assert "every checkpoint in" in train(out, *CONFIG, expect=2)


def test_the_newest_checkpoints_are_kept_and_latest_names_the_last(undisturbed: Path) -> None:
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == ["10", "6", "8"]
    assert (undisturbed / "LATEST").read_text() == "10\n"


def test_a_finished_run_is_not_trained_again(undisturbed: Path) -> None:
    before = (undisturbed / "model.safetensors").stat().st_mtime_ns
    assert "has finished" in train(undisturbed, *CONFIG)
    assert (undisturbed / "model.safetensors").stat().st_mtime_ns == before


def test_torchrun_restarts_killed_ranks_by_itself(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank is killed from outside after the first checkpoint; nobody types anything."""
    out = tmp_path / "run"
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    killer = Job("_", prepare=partial(kill_when_it_exists, out / "checkpoints" / "4"))
    options = ["--max-restarts=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    said = torchrun("train", f"out={out}", *CONFIG, ranks=3, options=options)
    assert killer.wait() == [0]
    assert "resumed after iteration" in said
    assert weights(out) == weights(undisturbed)


def kill_when_it_exists(path: Path, rank: int) -> None:
    """Kills one process that trains into this run folder, then ends this one."""
    for _ in range(6000):
        if path.exists():
            for candidate in Path("/proc").glob("[0-9]*"):
                try:
                    command = (candidate / "cmdline").read_text()
                    environment = (candidate / "environ").read_text()
                except OSError:  # it has ended meanwhile, or is not ours to read
                    continue
                if f"out={path.parent.parent}" in command and "\0RANK=2\0" in environment:
                    os.kill(int(candidate.name), signal.SIGKILL)
                    os._exit(0)
        time.sleep(0.01)
    os._exit(1)
