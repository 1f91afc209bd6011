"""What is carried out of a plan, after what, and what a failure or a mistake stops; nothing is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from lookaround_ddp.cli import main
from lookaround_ddp.config import Config, load_config
from lookaround_ddp.errors import UserError
from lookaround_ddp.report import read_run
from lookaround_ddp.reproduce.plan import make_plan
from lookaround_ddp.reproduce.run import carry_out, show_results
from tests.report.test_report import markdown
from tests.support.cells import POINTS, config_of
from tests.support.records import finished_run, score


class Fakes:
    """Trains and scores nothing, but leaves results; `top1` of a run is on held-out and on test images."""

    def __init__(self, top1: dict[str, tuple[float, float]], statuses: dict[str, int]) -> None:
        self.top1, self.statuses = top1, statuses
        self.trained: list[str] = []
        self.scored: list[list[str]] = []

    def train(self, arguments: Sequence[str]) -> int:
        out = json.loads(arguments[1].removeprefix("out="))
        run = os.path.relpath(out, "runs/table")
        self.trained.append(run)
        held_out, test = self.top1.get(run, (50.0, 50.0))
        if self.statuses.get(run, 0) == 0:
            finished_run(Path(out), load_config(arguments[0], arguments[1:]), score(test), validation=score(held_out))
        return self.statuses.get(run, 0)

    def score(self, config: Config, arguments: Sequence[str]) -> int:
        self.scored.append(list(arguments))
        return 1


def test_carrying_out_goes_on_after_failures(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The soup cannot be made without b, nor the ensemble; the winner is the better on held-out images."""
    fakes = Fakes({POINTS[0]: (70, 99), POINTS[1]: (71, 60)}, {"../other/b-s0": 1})
    failed = carry_out(make_plan(["table"]), fakes.train, fakes.score)
    assert fakes.trained == ["a-s0", *POINTS, "../other/b-s0"]
    assert failed == ["runs/other/b-s0"]
    said = capfd.readouterr().err
    for name in ("mixed", "soup"):
        assert f"left out: table/{name}, seed 0, since other/b, seed 0 has not finished" in said
    assert "optimizer.lr=0.01 is the best of 2 by held-out images" in said
    result = json.loads(Path("runs/table/grid-s0/result.json").read_text())
    assert result["mean"] == score(60)
    winner = result["winner"]
    assert (winner["name"], winner["overrides"], winner["score"]) == (
        *("optimizer.lr=0.01", ["optimizer.lr=0.01"], score(71)),
    )

    fakes = Fakes({}, {})
    plan = make_plan(["table"])
    assert carry_out(plan, fakes.train, fakes.score) == ["runs/table/mixed-s0", "runs/table/soup-s0"]
    assert fakes.trained == ["../other/b-s0"]
    runs = [f"runs/table/{name}" for name in POINTS] + ["runs/other/b-s0"]
    out = [
        "--out",
        "runs/table/soup-s0",
        "--recipe",
        "top:2",
        "--update-bn",
        "--trust",
        "evaluate.recalibrate_iterations=null",
    ]
    assert fakes.scored == [
        ["ensemble", *runs, "--out", "runs/table/mixed-s0"],
        ["soup", "runs/other/b-s0", "runs/table/a-s0", *out],
    ]
    show_results(plan)
    assert [row[:2] for row in markdown(capfd.readouterr().out)[2:]] == [
        ["`a-s0`: mean model", "50.00"],
        ["`grid-s0`: best of 2", "60.00"],
    ]


def test_a_mistake_ends_all(table: Path) -> None:
    fakes = Fakes({}, {POINTS[0]: 2})
    with pytest.raises(SystemExit) as ended:
        carry_out(make_plan(["table"]), fakes.train, fakes.score)
    assert ended.value.code == 2
    assert fakes.trained == ["a-s0", POINTS[0]]


def test_some_points_of_a_sweep(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As on one of several machines: the winner waits for all of them, and is not selected again."""
    fakes = Fakes({}, {})
    assert carry_out(make_plan(["table/grid.yaml"], ["optimizer.lr=0.01"]), fakes.train, fakes.score) == []
    assert fakes.trained == [POINTS[1]]
    assert not Path("runs/table/grid-s0/result.json").exists()
    main(["report", "--brief", "runs/table/grid-s0", f"runs/table/{POINTS[1]}"])
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "runs/table/grid-s0: a sweep that has not finished; its points are in it"
    assert [row[0] for row in markdown(said.out)[2:]] == ["`optimizer.lr=0.01`: mean model"]
    carry_out(make_plan(["table/grid.yaml"]), fakes.train, fakes.score)
    assert fakes.trained == [POINTS[1], POINTS[0]]
    assert read_run(Path("runs/table/grid-s0")).winner["name"] == "optimizer.lr=0.1"  # the first of equals
    assert not make_plan(["table/grid.yaml"]).trainings
    for value in ("epochs=6", "model.seed=1", "data.split_seed=1"):
        with pytest.raises(UserError, match="grid-s0 was made otherwise, or of runs with other values: delete it"):
            make_plan(["table/grid.yaml"], [value])


def test_the_best_of_several_on_test_images(table: Path) -> None:
    """Equals are told apart by their NLL."""
    Path("table/best.yaml").write_text("recipe: best\nof: [a, ../other/b, grid]\nby: test\n")
    for run, found in (("table/a-s0", score(60, nll=0.5)), ("other/b-s0", score(60, nll=0.4))):
        finished_run(Path("runs") / run, config_of(run.partition("/")[2]), found)
    fakes = Fakes(dict.fromkeys(POINTS, (99, 59)), {})
    assert carry_out(make_plan(["table/best.yaml"]), fakes.train, fakes.score) == []
    record = read_run(Path("runs/table/best-s0"))
    assert (record.winner["name"], record.winner["by"], len(record.of)) == ("b-s0", "test", 4)
    assert record.config.replicas == (("hflip", "vflip"),)


def test_other_nodes_leave_the_makings_to_the_first(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")
    fakes, plan = Fakes({}, {}), make_plan(["table"])
    assert carry_out(plan, fakes.train, fakes.score) == []
    assert len(fakes.trained) == 4
    assert fakes.scored == []
    show_results(plan)
    assert capsys.readouterr().out == ""


def test_runs_whose_batch_norm_was_measured_otherwise(table: Path) -> None:
    """It is part of what they leave: of SWA in any case, of a mean model where it is asked for."""
    Path("table/swa.yaml").write_text("base: a.yaml\ntrajectory: {name: swa, start: 2}\n")
    for name in ("a-s0", "swa-s0"):
        finished_run(Path(f"runs/table/{name}"), config_of(name), score(90))
    whole = "evaluate.recalibrate_iterations=null"
    make_plan(["table/a.yaml"], [whole])
    for name, value in (("a", "evaluate.recalibrate=true"), ("swa", whole)):
        with pytest.raises(UserError, match=rf"{name}-s0 was trained with other values \(evaluate"):
            make_plan([f"table/{name}.yaml"], [value])
    Path("table/both.yaml").write_text("recipe: best\nof: [a, swa]\n")
    fakes = Fakes({}, {})
    for name, value in (("here", "evaluate.batch_size=9"), ("there", whole)):
        assert carry_out(make_plan(["table/both.yaml"], [value], runs=Path(name)), fakes.train, fakes.score) == []
        make_plan(["table/both.yaml"], [value], runs=Path(name))
    with pytest.raises(UserError, match="both-s0 was made otherwise, or of runs with other values"):
        make_plan(["table/both.yaml"], runs=Path("there"))
