"""Soups and ensembles of finished runs: means, selections and barriers that someone worked out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lookaround_ddp.evaluation.soup import barrier_between, choose, mean_state
from tests.support.runs import TINY, Job, train

BASE = (*TINY, "replicas=[[crop,rotation]]", "data.validation=60", "data.split_seed=5", "epochs=6")
RUNS = {  # from one starting point, with other orders, rates and lengths
    "a": ("seed=1", "model.seed=0"),
    "b": ("seed=2", "model.seed=0", "optimizer.lr=0.05"),
    "c": ("seed=3", "model.seed=0", "optimizer.lr=0.001", "epochs=2"),
    "elsewhere": ("seed=3",),
    "brighter": ("seed=1", "model.seed=0", "data.mean=[0.5]", "data.std=[0.25]", "epochs=1"),
    "other-split": ("seed=1", "model.seed=0", "data.split_seed=6"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soups")
    for name, values in RUNS.items():
        train(folder / name, *BASE, *values)
    return folder


def command(*arguments: str, ranks: int = 1, expect: int = 0) -> str:
    job = Job(*arguments, ranks=ranks)
    assert job.wait() == [expect] * ranks, job.said()
    return job.said(0)


def scores(run: Path, name: str = "mean") -> dict[str, float]:
    return json.loads((run / "result.json").read_text())[name]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_uniform_soup_is_the_mean_and_can_be_evaluated(runs: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "soup"
    said = command("soup", f"{runs}/a", f"{runs}/b", "--recipe", "uniform", "--out", str(out), ranks=ranks)
    found, a, b = (load_file(folder / "model.safetensors") for folder in (out, runs / "a", runs / "b"))
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.equal(value, ((a[name].double() + b[name].double()) / 2).float()), name
        else:
            assert torch.equal(value, a[name])
    printed = f"top-1 {scores(out)['top1']:.2f} top-5 {scores(out)['top5']:.2f} NLL {scores(out)['nll']:.4f}"
    assert f"soup of 2: {printed} (test)" in said
    assert f"mean {printed}" in command("evaluate", str(out), ranks=ranks)
    again = command("soup", str(out), f"{runs}/a", "--recipe", "uniform", ranks=ranks)  # of one start with a, and b
    assert "soup of 2" in again
    for run in ("a", "b"):
        assert f"{runs}/{run}: top-1 {scores(runs / run, 'validation')['top1']:.2f}" in said


def test_greedy_and_top_select_by_held_out_images(runs: Path, tmp_path: Path) -> None:
    """`top:1` is the best one by validation, itself; what greedy takes is not worse there."""
    names = [f"{runs}/{name}" for name in "cba"]
    best = max(names, key=lambda name: scores(Path(name), "validation")["top1"])
    command("soup", *names, "--recipe", "top:1", "--out", str(tmp_path / "top"))
    assert json.loads((tmp_path / "top" / "result.json").read_text())["soup"] == [best]
    assert scores(tmp_path / "top") == scores(Path(best))
    command("soup", *names, "--out", str(tmp_path / "greedy"))
    taken = json.loads((tmp_path / "greedy" / "result.json").read_text())["soup"]
    assert taken[0] == best
    assert "validation top-1" in command("evaluate", f"{tmp_path}/greedy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "elsewhere", "--recipe", "uniform"), "did not start from the same weights"),
        (("a", "other-split"), "held out other images than"),
        (("a", "b", "data.validation=0"), "held out none: set data.validation and train again, or average all of them"),
        (("a", "b", "--recipe", "greedy", "data.validation=0"), "held out none: set data.validation"),
        (("a", "b", "--recipe", "best"), "recipe 'best': use uniform, greedy or top:N"),
        (("a", "b", "--recipe", "top:3"), "there are only 2 runs"),
        (("a", "a", "--recipe", "uniform"), "is named twice"),
        (("a", "b/../a", "--recipe", "uniform"), "is named twice"),
        (("a", "b", "--recipe", "top:²"), "use uniform, greedy or top:N"),
        (("a", "b", "brighter", "--recipe", "uniform"), "brighter has data.mean (0.5,), and"),
        (("data.validation=0",), "name at least one run's folder"),
        (("a", "b", "--out", "c"), "c is there already: give another --out"),
        (("a", "nowhere"), "is not a run folder"),
    ],
)
def test_runs_that_make_no_soup(runs: Path, arguments: tuple[str, ...], message: str) -> None:
    values = ("--recipe", "uniform", "greedy", "best", "top:3", "top:²", "data.validation=0", "--out")
    said = command("soup", *(each if each in values else f"{runs}/{each}" for each in arguments), expect=2)
    *warnings, error = said.splitlines()
    assert all("was trained with other values: data.validation: 60 -> 0" in warning for warning in warnings)
    assert error.startswith("error: ")
    assert message in error


def test_a_run_whose_name_looks_like_a_value(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").symlink_to(runs / "a")
    assert command("ensemble", f"{tmp_path}/lr=0.1", f"{runs}/b") == command("ensemble", f"{runs}/a", f"{runs}/b")


def test_the_ensemble_command_scores_the_mean_prediction(runs: Path) -> None:
    """Of a run with itself it is the run's own; of two, each member's score is that of its run."""
    a, b = (f"top-1 {scores(runs / name)['top1']:.2f}" for name in "ab")
    assert "they see other images" in command("ensemble", f"{runs}/a", f"{runs}/brighter", expect=2)
    alone = command("ensemble", f"{runs}/a", f"{runs}/a")
    assert alone.count(a) == 4
    said = command("ensemble", f"{runs}/a", f"{runs}/b", ranks=2).splitlines()
    assert a in said[0]
    assert b in said[1]
    assert [line.partition(" top-1")[0] for line in said[2:]] == [
        "ensemble (mean of logits)",
        "ensemble (mean of probabilities)",
    ]


class Tasting:
    """A scorer whose accuracy and NLL are functions of the state's one number."""

    def __init__(self, top1: Any, nll: Any = lambda x: 0.0) -> None:
        self.top1, self.nll = top1, nll

    def score(self, state: dict[str, Tensor]) -> dict[str, float]:
        x = state["w"].item()
        return {"top1": self.top1(x), "nll": self.nll(x)}


def states(**values: float) -> dict[str, dict[str, Tensor]]:
    return {name: {"w": torch.tensor(value)} for name, value in values.items()}


def test_greedy_takes_what_makes_it_strictly_better() -> None:
    """Accuracy 100 - |w - 3|: b = 4 (99); with c = 2 their mean is 3 (100): taken; a makes 3.2: no; d no better."""
    mixture, scorer = states(a=3.6, b=4.0, c=2.0, d=3.0), Tasting(lambda x: 100 - abs(x - 3))
    tastes = {name: scorer.score(state) for name, state in mixture.items()}
    assert choose("greedy", ["b", "c", "a", "d"], mixture, tastes, scorer) == ["b", "c"]
    assert choose("top:2", ["d", "a", "b", "c"], mixture, tastes, scorer) == ["d", "a"]
    assert choose("uniform", ["b", "c", "a", "d"], mixture, tastes, scorer) == ["a", "b", "c", "d"]


def test_the_barrier_is_the_height_above_the_line() -> None:
    """NLL x (4 - x) between 0 and 4: both ends are 0, the middle 4. Plus x: the line rises with it."""
    for slope in (0.0, 1.0):
        scorer = Tasting(lambda x: 0.0, lambda x, slope=slope: x * (4 - x) + slope * x)
        one, other = states(a=0.0, b=4.0).values()
        assert barrier_between(scorer, one, other, scorer.score(one), scorer.score(other)) == pytest.approx(4.0)


def test_the_mean_is_rounded_once() -> None:
    """In fp32 1 + 2^-24 + 2^-24 would stay 1 at each step; integers are the first state's."""
    one = {"w": torch.tensor([1.0]), "n": torch.tensor(3)}
    two = {"w": torch.tensor([1 + 2**-22]), "n": torch.tensor(5)}
    assert mean_state([one, two])["w"].item() == 1 + 2**-23
    assert mean_state([one, two], [0.75, 0.25])["w"].item() == 1.0  # 1 + 2^-24 is a tie, rounded to even
    assert mean_state([one, two])["n"].item() == 3
