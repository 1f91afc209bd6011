"""A run is made longer by a word, and has the bits that the word promises, however often it is killed."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lookaround_ddp.cli import main
from lookaround_ddp.config.schedule import ScheduleConfig
from lookaround_ddp.optim.schedule import scheduled_rate
from tests.support.runs import EVERY, TINY, Job, die_at, train, weights
from tests.support.small_runs import one_line

# 5 iterations in an epoch, averages after 3, 6, 9, 12, ...: the end after 10 is in the middle of a round
CONFIG = (*TINY, "replicas=[[crop],[rotation]]", "evaluate.every=1", "checkpoint.every=0.4", "record.every=1")
CONSTANT = (*CONFIG, "schedule.name=constant", "data.validation=30", "trajectory.name=swa", "trajectory.every=4")


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(run: Path, key: str) -> dict[int, Any]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["iteration"]: line[key] for line in found if key in line}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 epochs from the start."""
    out = tmp_path_factory.mktemp("straight") / "run"
    train(out, *CONSTANT, "epochs=4")
    return out


def test_a_constant_rate_has_the_bits_of_a_run_so_long_from_the_start(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished after 2 epochs on two ranks, extended to 4, killed, and gone on with on one."""
    out = tmp_path / "run"
    train(out, *CONSTANT, ranks=2)
    ended = {name: digest(out / name) for name in ("result.json", "model.safetensors", "trajectory.safetensors")}
    said = one_line(train(out, *CONSTANT, "epochs=4", expect=2))
    assert "another config (epochs: 2 -> 4): change it back, make it longer with schedule.extend=stretch" in said

    longer = ("epochs=4", "schedule.extend=hold")
    job = Job("train", f"out={out}", *CONSTANT, *longer, ranks=2, prepare=partial(die_at, 13, EVERY))
    assert job.wait() == [-signal.SIGKILL] * 2, job.said()
    said = "extended after iteration 10, from 10 to 20: the learning rate goes on from 0.1 at 0.1; what it left at its"
    assert f"{said} old end is in {out}/ended-10" in job.said()
    assert not (out / "model.safetensors").exists()
    assert not (out / "result.json").exists()
    assert "resumed after iteration 12" in train(out, *CONSTANT, *longer)

    for name in ("model.safetensors", "trajectory.safetensors"):
        assert digest(out / name) == digest(straight / name)
    found, wanted = result(out), result(straight)
    for key in ("mean", "validation", "trajectory", "iterations", "epochs", "config"):
        assert found[key] == wanted[key]
    assert {**found["best"], "sha256": None} == {**wanted["best"], "sha256": None}
    assert found["files"] == {name: digest(out / name) for name in found["files"]}
    assert list(lines(out, "lr")) == list(range(1, 21))
    assert lines(out, "loss") == lines(straight, "loss")
    assert list(lines(out, "final")) == [20]

    folder = out / "ended-10"
    assert {name: digest(folder / name) for name in ended} == ended
    assert list(lines(folder, "final")) == [10]
    capsys.readouterr()
    main(["report", str(out), str(folder), "--curves", str(tmp_path / "c.png"), "--csv", str(tmp_path / "s.csv")])
    assert "ended-10" in capsys.readouterr().out
    for run in (out, folder):
        main(["evaluate", str(run)])
        top1 = result(run)["trajectory"]["top1"]
        assert f"trajectory top-1 {top1:.2f} " in capsys.readouterr().out
    assert "has finished" in train(out, *CONSTANT, *longer)
    assert "has finished" in train(out, *CONSTANT, "epochs=4")
    main(["evaluate", str(out)])


def test_an_ensemble_of_before_is_evaluated_by_its_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The replicas' checkpoints went on with the run."""
    out, ensemble = tmp_path / "run", (*CONFIG, "average.k=never", "schedule.name=constant")
    train(out, *ensemble)
    before = result(out)["ensemble"]["logits"]["top1"]
    train(out, *ensemble, "epochs=3", "schedule.extend=hold")
    main(["evaluate", str(out / "ended-10")])
    assert f"ensemble (mean of logits) top-1 {before:.2f} " in capsys.readouterr().out
    main(["evaluate", str(out)])


def test_a_stretched_cosine_is_what_its_config_says(tmp_path: Path) -> None:
    """The rates; its config.yaml trains the same bits anew; and what is said where its end is no longer there."""
    out = tmp_path / "run"
    train(out, *CONFIG)
    train(out, *CONFIG, "epochs=3", "schedule.extend=stretch", ranks=2)
    schedule = ScheduleConfig()
    rates = [scheduled_rate(schedule, 0.1, each, 5, 10 if each < 10 else 15) for each in range(15)]
    assert lines(out, "lr") == dict(enumerate(rates, 1))
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["epochs"], kept["schedule"]["spans"]) == (3, [[0, 10], [10, 15]])
    assert kept["schedule"]["extend"] is None
    anew = tmp_path / "anew"
    job = Job("train", str(out / "config.yaml"), f"out={anew}")
    assert job.wait() == [0], job.said()
    assert weights(anew) == weights(out)

    shutil.rmtree(anew / "checkpoints" / "15")
    said = one_line(train(anew, *CONFIG, "epochs=4", "schedule.extend=stretch", expect=2))
    assert "has finished, and its last checkpoint (15), from which a longer run goes on, is not there" in said
    shutil.rmtree(anew / "checkpoints")
    assert one_line(train(anew, *CONFIG, "epochs=4", "schedule.extend=stretch", expect=2)) == said
    said = one_line(train(anew, *CONFIG, "epochs=4", expect=2))
    assert f"the run in {anew} was trained with another config (epochs: 3 -> 4)" in said
    assert "has finished" in train(anew, *CONFIG, "epochs=3")
    assert weights(anew) == weights(out)


def test_a_run_that_was_stopped_is_made_longer(straight: Path, tmp_path: Path) -> None:
    """Twice: killed in iteration 8, goes on after 8 to 15, and then to 20; and the word has no effect on a new run."""
    out = tmp_path / "run"
    job = Job("train", f"out={out}", *CONSTANT, "schedule.extend=stretch", prepare=partial(die_at, 8, EVERY))
    assert job.wait() == [-signal.SIGKILL]
    assert f"schedule.extend has no effect: no run in {out} has begun" in job.said()
    said = train(out, *CONSTANT, "epochs=3", "schedule.extend=stretch")
    assert "extended after iteration 8, from 10 to 15" in said
    assert not (out / "ended-10").exists()
    train(out, *CONSTANT, "epochs=4", "schedule.extend=stretch", ranks=2)
    assert weights(out) == weights(straight)
    assert (out / "ended-15" / "result.json").exists()
