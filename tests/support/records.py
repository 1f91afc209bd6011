"""Run folders as a training leaves them, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lookaround_ddp.config import Config
from lookaround_ddp.report.runs import Group, grouped, read_run

LOOKAROUND, SINGLE = "quickstart-lookaround", "quickstart-single"  # as launch/quickstart.sh names them
THREE, ONE = "[[crop], [rotation], [perspective]]", "[[crop, rotation, perspective]]"


def score(top1: float, top5: float | None = None, nll: float = 1.0) -> dict[str, float]:
    return {"top1": top1, "nll": nll} if top5 is None else {"top1": top1, "top5": top5, "nll": nll}


def training(epoch: float, *losses: float) -> dict[str, Any]:
    return {"iteration": int(8 * epoch), "epoch": epoch, "lr": 0.1, "loss": list(losses), "distance": None}


def evaluation(epoch: float, **scores: Any) -> dict[str, Any]:
    return {"iteration": int(8 * epoch), "epoch": epoch, **scores}


def write_run(folder: Path, own: str, lines: Sequence[Any] = (), **result: Any) -> Path:
    """A run folder of 20 epochs of 8 iterations; without `result` the run has not finished."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"out: elsewhere\nreplicas: {own}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result:
        (folder / "result.json").write_text(json.dumps({"best": None, "iterations": 160, "epochs": 20, **result}))
    return folder


def finished_run(folder: Path, config: Config, mean: dict[str, float], **result: object) -> Path:
    """The folder of a finished run of a config, whose mean model has this score."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json") | {"out": "elsewhere"}))
    whole = {"mean": mean, "seconds": 1, "iterations": 1, "epochs": 1, "best": None, **result}
    (folder / "result.json").write_text(json.dumps(whole))
    return folder


def lookaround_run(folder: Path) -> Path:
    replicas = [[score(30), score(41.5), score(52)], [score(93.851, 99.7), score(95.239, 99.874, 0.16854), score(98.1)]]
    lines = [
        training(6.25, 1.5, 1.25, 1.75),
        evaluation(10, mean=score(88.5, 99, 0.5), replicas=replicas[0]),
        training(12.5, 0.5, 0.25, 0.75),
        evaluation(20, mean=score(96.487, 99.749, 0.12345), replicas=replicas[1]),
    ]
    best = {"iteration": 160, "epoch": 20.0, "selected_by": "test", "selected_top1": 96.487, "mean": lines[-1]["mean"]}
    result = {"mean": lines[-1]["mean"], "replicas": replicas[1], "best": best, "seconds": 41.7}
    return write_run(folder / LOOKAROUND, THREE, lines, **result)


def single_run(folder: Path) -> Path:
    lines = [training(20, 0.0625), evaluation(15, mean=score(95.6, 99.5, 0.2)), evaluation(20, mean=score(95.1, 99.4))]
    best = {"iteration": 120, "epoch": 15.0, "selected_by": "test", "selected_top1": 95.6, "mean": lines[1]["mean"]}
    return write_run(folder / SINGLE, ONE, lines, mean=lines[2]["mean"], best=best, seconds=1234.4)


def groups(*runs: Path) -> list[Group]:
    return grouped([read_run(run) for run in runs])


def begun(folder: Path) -> Path:
    """A run that has not finished: its last line is half written, and nothing was evaluated yet."""
    run = write_run(folder, THREE, [training(1, 2.5, 2.25, 2.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 16, "epo')
    return run
