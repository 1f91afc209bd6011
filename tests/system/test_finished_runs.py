"""What a finished run says of itself: the same figures again, the last epoch's and the best one's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lookaround_ddp.config.schema import DataConfig, ModelConfig
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.models.factory import create_model
from tests.support.runs import TINY, Job, die_at, train, weights
from tests.support.scores import plain_score

KEPT = (*TINY, "data.validation=30", "evaluate.replicas=true", "evaluate.recalibrate=true")
NEVER = (*TINY, "average.k=never", "evaluate.every=1")
FOLDER = (*TINY, "data.name=imagefolder", "data.size=16", "data.train_images=12", "data.batch_size=4")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Finished runs, and what rank 0 and the others printed."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = {"on 3": (KEPT, 3), "on 1": (KEPT, 1), "never": (NEVER, 1)}
    return {name: (folder / name, train(folder / name, *job, ranks=ranks)) for name, (job, ranks) in jobs.items()}


def evaluate(run: Path, *overrides: str, ranks: int = 1, expect: int = 0) -> list[str]:
    job = Job("evaluate", str(run), *overrides, ranks=ranks)
    assert job.wait() == [expect] * ranks, job.said()
    return job.said().splitlines()


def lines(run: Path, key: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if key in line]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def text(score: dict[str, float]) -> str:
    top5 = f" top-5 {score['top5']:.2f}" if "top5" in score else ""
    return f"top-1 {score['top1']:.2f}{top5} NLL {score['nll']:.4f}"


def independent(replicas: Sequence[dict[str, float]], ensemble: dict[str, dict[str, float]]) -> list[str]:
    """What `evaluate` prints of replicas that were never averaged, and of their ensemble."""
    own = [f"replica {number} {text(score)}" for number, score in enumerate(replicas)]
    return own + [f"ensemble (mean of {kind}) {text(ensemble[kind])}" for kind in ("logits", "probabilities")]


@pytest.mark.parametrize(("name", "ranks"), [("on 3", 1), ("on 1", 3)])
def test_evaluate_repeats_what_training_printed(runs: dict[str, tuple[Path, str]], name: str, ranks: int) -> None:
    run, said = runs[name]
    kept = result(run)
    assert evaluate(run, ranks=ranks) == [
        f"mean {text(kept['mean'])}",
        f"validation {text(kept['validation'])}",
        *(f"replica {j} {text(kept['replicas'][j])}" for j in range(3)),
        f"best {text(kept['best']['mean'])}",
    ]
    line = evaluate(run, "evaluate.recalibrate=false", expect=2)[-1]
    assert line.startswith("error: evaluate.recalibrate changes nothing here: ")
    assert line.endswith("(trained with evaluate.recalibrate=true), and is scored as it was saved")
    tops = " ".join(f"{score['top1']:.2f}" for score in kept["replicas"])
    printed = f"epoch 2 | mean {text(kept['mean'])} | validation {text(kept['validation'])} | replicas {tops}"
    assert printed in said.splitlines()
    assert len({score["nll"] for score in [kept["mean"], kept["validation"], *kept["replicas"]]}) == 5


def test_result_and_weights_are_the_same_however_many_trained(runs: dict[str, tuple[Path, str]]) -> None:
    """Recalibrated running statistics, and their counts of batches, are among the weights."""
    assert weights(runs["on 1"][0]) == weights(runs["on 3"][0])
    results = [result(runs[name][0]) for name in ("on 1", "on 3")]
    for key in ("mean", "validation", "replicas", "best"):
        assert results[0][key] == results[1][key]


def test_figures_are_those_of_the_saved_networks(runs: dict[str, tuple[Path, str]]) -> None:
    """model.safetensors gives `mean` and `validation`, the last checkpoint's replicas give `replicas`."""
    run, _ = runs["on 3"]
    data = open_dataset(DataConfig(train_images=80, validation=30), seed=0)
    assert data.validation is not None
    mean = load_file(run / "model.safetensors")
    replica = torch.load(run / "checkpoints" / "10" / "replica-1.pt", weights_only=True)["model"]
    kept = result(run)
    for state, score, split in (
        (mean, kept["mean"], data.test),
        (mean, kept["validation"], data.validation),
        (replica, kept["replicas"][1], data.test),
    ):
        model = create_model(ModelConfig(width=4), 10, 1)
        model.load_state_dict(state)
        top1, nll = plain_score(model, split)
        assert score["nll"] == pytest.approx(nll, rel=1e-5)
        assert score["top1"] == pytest.approx(top1, abs=101 / len(split.labels))  # fp32 may decide one tie otherwise


def test_replicas_that_were_never_averaged_are_an_ensemble(runs: dict[str, tuple[Path, str]]) -> None:
    run, said = runs["never"]
    kept = result(run)
    assert "mean" not in kept
    assert kept["best"] is None
    assert kept["replicas"] == lines(run, "replicas")[-1]["replicas"] != lines(run, "replicas")[0]["replicas"]
    assert evaluate(run, ranks=3) == independent(kept["replicas"], kept["ensemble"])
    tops = " ".join(format(score["top1"], ".2f") for score in kept["replicas"])
    assert f"epoch 2 | ensemble {text(kept['ensemble']['logits'])} | replicas {tops}" in said


def test_a_damaged_checkpoint_is_passed_over_loudly(runs: dict[str, tuple[Path, str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["never"][0], run)
    damaged = run / "checkpoints" / "10" / "replica-1.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said = evaluate(run)
    warning = "checkpoint 10 is damaged (replica-1.pt: its checksum differs): passed over for the one before"
    assert said.count(warning) == 1
    first, _ = (line["replicas"] for line in lines(run, "replicas"))  # all of one checkpoint
    # the ensemble's members are files of their own
    expected = independent(first, result(run)["ensemble"])
    found = [line.removeprefix("iteration 5's ") for line in said if line != warning]
    assert found == expected
    assert sum(line.startswith("iteration 5's replica ") for line in said) == 3


@pytest.mark.parametrize("average", ["average.k=3", "average.k=never"])
def test_a_run_that_has_not_finished_is_not_evaluated(tmp_path: Path, average: str) -> None:
    run = tmp_path / "run"
    Job("train", f"out={run}", *TINY, average, prepare=partial(die_at, 7, 0)).wait()
    (said,) = evaluate(run, expect=2)
    assert "has not finished; the same train command goes on with it" in said


def test_data_of_other_classes_is_refused(tmp_path: Path) -> None:
    for classes in (3, 4):
        for split in ("train", "val"):
            for c in range(classes):
                folder = tmp_path / str(classes) / split / str(c)
                folder.mkdir(parents=True)
                for number in range(6):
                    Image.new("L", (20, 20), 40 * number).save(folder / f"{number}.png")
    for average in ("average.k=3", "average.k=never"):
        run = tmp_path / average
        said = train(run, *FOLDER, f"data.root={tmp_path}/3", average)
        assert "top-5 " not in said.replace("top-5 %", "")
        kept = result(run)
        if average == "average.k=3":
            assert evaluate(run) == [f"mean top-1 {kept['mean']['top1']:.2f} NLL {kept['mean']['nll']:.4f}"]
        else:
            assert evaluate(run) == independent(kept["replicas"], kept["ensemble"])
        (error,) = evaluate(run, f"data.root={tmp_path}/4", expect=2)
        assert error == f"error: the model in {run} has 3 classes, the data has 4"


def test_a_run_folder_whose_name_is_a_number(tmp_path: Path, runs: dict[str, tuple[Path, str]]) -> None:
    (tmp_path / "2024").symlink_to(runs["on 1"][0])
    job = Job("evaluate", "2024", "evaluate.replicas=false", prepare=partial(enter, tmp_path))
    assert job.wait() == [0], job.said()
    assert job.said().startswith(f"mean {text(result(runs['on 1'][0])['mean'])}")


def enter(folder: Path, rank: int) -> None:
    os.chdir(folder)


def scripted(validation: Sequence[float], test: Sequence[float], death: int | None, rank: int) -> None:
    """Makes the evaluations score what is written here; kills the process when it begins iteration `death`."""
    from lookaround_ddp.evaluation.evaluator import Evaluator, Score

    scores = {30: iter(validation), 797: iter(test)}

    def shared(self: Evaluator, model: nn.Module) -> Score:
        return {"top1": next(scores[len(self.batches.split)]), "top5": 99.0, "nll": 1.0}

    Evaluator.shared = shared
    if death is not None:
        die_at(death, 0, rank)


@pytest.mark.parametrize(
    ("validation", "test", "selected_by", "best", "killed"),
    [
        ((50, 70, 60, 70), (10, 20, 90, 30), "validation", 2, False),  # not the test set's best; the first of a tie
        ((50, 70, 60, 70), (10, 20, 90, 30), "validation", 2, True),
        ((50, 70, 60, 80), (10, 20, 90, 30), "validation", 4, False),
        ((), (10, 20, 90, 30), "test", 3, True),
    ],
)
def test_the_best_epoch(
    tmp_path: Path, validation: Sequence[float], test: Sequence[float], selected_by: str, best: int, killed: bool
) -> None:
    """4 epochs of 5 iterations; killed or not in the third, before which there are two scores."""
    run = tmp_path / "run"
    held_out = "data.validation=30" if validation else "data.validation=0"
    command = ("train", f"out={run}", *TINY, "epochs=4", "evaluate.every=1", held_out)
    if killed:
        job = Job(*command, prepare=partial(scripted, validation[:2], test[:2], 12))
        assert job.wait() == [-signal.SIGKILL]
        validation_left, test_left = validation[2:], test[2:]
    else:
        validation_left, test_left = validation, test
    job = Job(*command, prepare=partial(scripted, validation_left, test_left, None))
    assert job.wait() == [0], job.said()
    kept, evaluations = result(run), lines(run, "mean")
    assert [line["mean"]["top1"] for line in evaluations] == list(test)
    assert kept["mean"] == evaluations[-1]["mean"]
    sha256 = {"sha256": kept["files"]["best.safetensors"]} if validation else {}
    assert kept["best"] == sha256 | {
        "iteration": 5 * best,
        "epoch": best,
        "selected_by": selected_by,
        "selected_top1": (validation or test)[best - 1],
        "mean": {"top1": test[best - 1], "top5": 99.0, "nll": 1.0},
    }
    table = [line.split("|") for line in job.said().splitlines() if line.startswith("|")]
    rows = {cells[1].strip(): cells[2].strip() for cells in table}
    assert rows["**mean model**"] == f"**{test[-1]:.2f}**"
    named = f"best epoch, {best}, by {selected_by} set"
    assert {name: top1 for name, top1 in rows.items() if name.startswith("best")} == (
        {named: f"{test[best - 1]:.2f}"} if best < 4 else {}
    )
