"""A small table of digits, really trained and made: a sweep, an ensemble, a soup, the best of several."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lookaround_ddp.cli import main
from lookaround_ddp.config import Config, DataConfig, ModelConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.models.factory import create_model
from lookaround_ddp.reproduce import carry_out, make_plan
from tests.report.test_report import markdown
from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT, Job

FILES = {
    "base/tiny": """
        epochs: 2
        model: {width: 4, seed: 0}
        data: {train_images: 80, validation: 40, batch_size: 16, pipeline: workers}
        replicas: [[crop], [rotation]]
        average: {k: 3}
        evaluate: {every: 2}
    """,
    "a": "base: base/tiny.yaml\noptimizer: {lr: 0.05}\n",
    "b": "base: base/tiny.yaml\noptimizer: {lr: 0.2}\nepochs: 3\n",
    "logit": "base: base/tiny.yaml\naverage: {k: never}\n",
    "grid": "base: base/tiny.yaml\nsweep: {optimizer.lr: [0.0001, 0.1]}\n",
    "ours-logit": "recipe: ensemble\nof: [a, logit]\n",
    "soup": "recipe: soup\nof: [a, b, grid]\nselect: top:2\nupdate_bn: true\n",
    "best": "recipe: best\nof: [a, grid, b]\nby: test\n",
}
POINTS = ["optimizer.lr=0.0001", "optimizer.lr=0.1"]
TRAINED = ["a-s0", "b-s0", *(f"grid-s0/{name}" for name in POINTS), "logit-s0"]
MADE = ["best-s0", "grid-s0", "ours-logit-s0", "soup-s0"]


class Ranks:
    """Starts trainings and makings as ranks of the tests' server, and remembers them."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.trained, self.scored = ranks, list[str](), list[str]()

    def train(self, arguments: Sequence[str]) -> int:
        self.trained.append(json.loads(arguments[1].removeprefix("out=")))
        return self._run("train", *arguments)

    def score(self, config: Config, arguments: Sequence[str]) -> int:
        self.scored.append(arguments[0])
        return self._run(*arguments)

    def _run(self, *arguments: str) -> int:
        job = Job(*arguments, ranks=self.ranks)
        codes = job.wait()
        assert len(set(codes)) == 1, job.said()
        return codes[0] or 0


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `small` of the table, beside it its runs on `one` rank and on `two`."""
    folder = tmp_path_factory.mktemp("reproduced")
    for name, text in FILES.items():
        path = folder / "small" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for ranks, runs in ((1, "one"), (2, "two")):
        started = Ranks(ranks)
        assert carry_out(make_plan([str(folder / "small")], runs=folder / runs), started.train, started.score) == []
        assert sorted(started.trained) == [f"{folder}/{runs}/small/{run}" for run in TRAINED]
        assert started.scored == ["ensemble", "soup"]
    return folder


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def scores(run: Path) -> dict[str, Any]:
    """What a result says, but for times and places."""
    whole = result(run)
    for key in ("seconds", "total_seconds", "processes", "of", "digest", "files"):
        whole.pop(key, None)
    whole["soup"] = [Path(name).name for name in whole.get("soup", [])]
    whole.get("winner", {}).pop("run", None)
    return whole


def test_scores_are_the_same_on_one_rank_and_on_two(table: Path) -> None:
    for run in (*TRAINED, *MADE):
        assert scores(table / "one" / "small" / run) == scores(table / "two" / "small" / run), run
    assert len({result(table / "one" / "small" / run)["mean"]["nll"] for run in TRAINED if run != "logit-s0"}) == 4


def test_a_second_call_trains_and_makes_nothing(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = Ranks(1)
    assert carry_out(make_plan([f"{table}/small"], runs=table / "one"), started.train, started.score) == []
    assert (started.trained, started.scored) == ([], [])
    main(["reproduce", f"{table}/small", "--runs", f"{table}/one", "--dry-run"])
    listing, total = capsys.readouterr().out.split("\n\n")
    rows = markdown(listing)[2:]
    assert sorted(Path(row[0]).name for row in rows) == sorted(["a-s0", "b-s0", "logit-s0", *MADE])
    assert all(row[-1] == "done" for row in rows)
    assert total.startswith("3 trainings: 3 done, 0 begun, 0 to do, 0 iterations. To be made of runs: 0.")


def test_the_winners_are_the_best(table: Path) -> None:
    """Of the sweep on held-out images, of the recipe on test images."""
    runs = table / "one" / "small"
    points = {name: result(runs / "grid-s0" / name) for name in POINTS}
    name = max(POINTS, key=lambda point: points[point]["validation"]["top1"])
    assert points[POINTS[0]]["validation"]["top1"] != points[POINTS[1]]["validation"]["top1"]
    grid = result(runs / "grid-s0")
    assert (grid["mean"], grid["winner"]["score"]) == (points[name]["mean"], points[name]["validation"])
    assert (grid["winner"]["name"], grid["winner"]["overrides"]) == (name, [name])
    candidates = {"a-s0": result(runs / "a-s0"), **points, "b-s0": result(runs / "b-s0")}
    best = max(candidates, key=lambda each: (candidates[each]["mean"]["top1"], -candidates[each]["mean"]["nll"]))
    found = result(runs / "best-s0")
    assert (found["winner"]["name"], found["mean"]) == (best, candidates[best]["mean"])


def state(file: Path) -> dict[str, Tensor]:
    return load_file(file)


@torch.no_grad()
def logits(file: Path) -> Tensor:
    """Of a saved network on the test images, in fp64, all in one batch."""
    model = create_model(ModelConfig(width=4), 10, 1)
    model.load_state_dict(state(file))
    test = open_dataset(DataConfig(), seed=0).test
    pixels = np.stack([np.asarray(test.image(index), dtype=np.float64) / 255 for index in range(len(test))])
    return model.double().eval()(torch.tensor((pixels - 0.306) / 0.319)[:, None])


def test_the_ensemble_is_of_the_run_and_of_the_members_of_the_other(table: Path) -> None:
    runs = table / "one" / "small"
    files = [runs / "a-s0" / "model.safetensors", *(runs / f"logit-s0/members/{j}.safetensors" for j in (0, 1))]
    mean = sum(map(logits, files)) / 3
    assert isinstance(mean, Tensor)
    labels = torch.tensor(open_dataset(DataConfig(), seed=0).test.labels)
    found = result(runs / "ours-logit-s0")["ensemble"]["logits"]
    assert found["nll"] == pytest.approx(torch.nn.functional.cross_entropy(mean, labels).item(), rel=1e-5)
    assert found["top1"] == pytest.approx(100 * (mean.argmax(1) == labels).double().mean().item(), abs=0.13)  # one tie


def test_the_soup_is_the_mean_of_the_two_best(table: Path) -> None:
    """On held-out images; its batch-norm was measured anew, over all batches."""
    runs = table / "one" / "small"
    names = ["a-s0", "b-s0", *(f"grid-s0/{name}" for name in POINTS)]
    found = result(runs / "soup-s0")
    assert found["recipe"] == {"recipe": "soup", "select": "top:2", "update_bn": True, "recalibrate_iterations": None}
    assert [Path(each["run"]) for each in found["of"]] == [runs / name for name in names]
    chosen = [Path(name) for name in found["soup"]]
    held_out = {runs / name: result(runs / name)["validation"]["top1"] for name in names}
    assert chosen == sorted(held_out, key=lambda run: held_out[run], reverse=True)[:2]
    one, other = (state(run / "model.safetensors") for run in chosen)
    soup = state(runs / "soup-s0" / "model.safetensors")
    assert torch.equal(soup["fc.weight"], ((one["fc.weight"].double() + other["fc.weight"].double()) / 2).float())
    running = next(name for name in soup if name.endswith("running_mean"))
    assert not torch.equal(soup[running], ((one[running].double() + other[running].double()) / 2).float())


def test_what_was_made_is_reported_but_has_no_models_to_evaluate(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = table / "one" / "small"
    main(["report", "--brief", *(str(runs / run) for run in MADE)])
    rows = [row[:2] for row in markdown(capsys.readouterr().out)[2:]]
    best, grid, ours, soup = (result(runs / run) for run in MADE)
    assert rows == [
        ["`best-s0`: best of 4", f"{best['mean']['top1']:.2f}"],
        ["`grid-s0`: best of 2", f"{grid['mean']['top1']:.2f}"],
        ["`ours-logit-s0`: ensemble, mean of logits", f"{ours['ensemble']['logits']['top1']:.2f}"],
        ["`soup-s0`: soup of 2", f"{soup['mean']['top1']:.2f}"],
    ]
    for command in (["evaluate"], ["ensemble", f"{runs}/a-s0"], ["soup", f"{runs}/a-s0"]):
        with pytest.raises(SystemExit):
            main([*command, f"{runs}/grid-s0"])
        said = capsys.readouterr().err
        assert said.startswith(f"error: {runs}/grid-s0 has no models of its own: it was made of {runs}/grid-s0/optim")


def test_the_script_trains_what_is_missing_and_prints_the_scores(table: Path, venv: Path) -> None:
    """Through the launcher, on as many ranks as this machine has cores for: two replicas, on one or two."""
    runs = table / "script"
    shutil.copytree(table / "one", runs)
    for name in ("b-s0", "soup-s0"):
        shutil.rmtree(runs / "small" / name)
    command = ["bash", f"{ROOT}/launch/reproduce.sh", *(f"{table}/small/{name}.yaml" for name in ("soup", "b", "grid"))]
    done = subprocess.run(
        [*command, "--runs", str(runs)],
        env={**os.environ, "VENV": str(venv), "SEEDS": "0"},
        capture_output=True,
        text=True,
        timeout=TEST_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    for name in ("b-s0", "soup-s0"):
        assert scores(runs / "small" / name) == scores(table / "one" / "small" / name)
    assert [line for line in done.stderr.splitlines() if line.startswith("== ")] == [
        "== small/b, seed 0",
        "== small/soup, seed 0: soup of 4",
    ]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines[-3:]] == ["soup-s0", "b-s0", "grid-s0"]
