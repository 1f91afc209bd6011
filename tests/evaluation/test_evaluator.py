"""Scores are those of a plain loop over every image once, and the same on any number of ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lookaround_ddp.config.schema import Config, DataConfig, EvaluateConfig
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.images import Arrays, Images
from lookaround_ddp.evaluation.evaluator import evaluating, make_evaluator
from lookaround_ddp.evaluation.recalibrate import recalibrate
from lookaround_ddp.models.inputs import Normalize
from tests.support.evaluations import ALONE, OWN, batches, classifier, digits, measure, normed, pixel_values, twisted
from tests.support.runs import Job


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("measured")
    for ranks in (1, 2, 3):
        job = Job("_", ranks=ranks, prepare=partial(measure, folder / str(ranks)))
        assert job.wait() == [0] * ranks, job.said()
    return {ranks: json.loads((folder / str(ranks)).read_text()) for ranks in (1, 2, 3)}


def plain_score(data: Dataset, split: Images, logits_of: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """One image after another, in fp64: a guess is right in five if fewer than five logits are above the label's."""
    top1 = top5 = nll = 0.0
    for index, label in enumerate(split.labels):
        logits = logits_of(pixel_values(data, split, index))
        above = sum(logit > logits[label] for logit in logits)
        top1, top5 = top1 + (above == 0), top5 + (above < 5)
        nll += math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits) - logits[label]
    count = len(split.labels)
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "nll": nll / count}


def linear_score(scale: float) -> dict[str, float]:
    data = digits()
    weight, bias = (p.detach().double().numpy() for p in classifier(data, scale)[2].parameters())
    return plain_score(data, data.test, lambda x: weight @ x + bias)


def test_the_confusion_matrix_is_a_plain_count(measured: dict[int, dict[str, Any]]) -> None:
    """Of the guesses of one model, and of the mean of six models' logits: image by image, in fp64."""
    data = digits()
    for name, models in (
        ("confusion", [classifier(data, 0.02)]),
        ("confusion of six", [twisted(data, j) for j in range(6)]),
    ):
        layers = [[p.detach().double().numpy() for p in model[2].parameters()] for model in models]
        counts = [[0] * 10 for _ in range(10)]
        for index, label in enumerate(data.test.labels):
            x = pixel_values(data, data.test, index)
            counts[label][int(np.mean([weight @ x + bias for weight, bias in layers], axis=0).argmax())] += 1
        assert sum(map(sum, counts)) == 797
        assert sum(counts[c][c] for c in range(10)) < 780  # some are taken for others
        for ranks in (1, 2, 3):
            assert measured[ranks][name] == counts


def test_the_ensemble_is_a_plain_loop_over_images_and_members(measured: dict[int, dict[str, Any]]) -> None:
    """Of the mean of the logits, and of the mean of the probabilities, each as log-probabilities of one image."""
    data = digits()
    weights = [[p.detach().double().numpy() for p in twisted(data, j)[2].parameters()] for j in range(6)]

    def mean_logits(x: np.ndarray) -> np.ndarray:
        return sum(weight @ x + bias for weight, bias in weights) / 6

    def mean_probabilities(x: np.ndarray) -> np.ndarray:
        odds = [np.exp(weight @ x + bias - (weight @ x + bias).max()) for weight, bias in weights]
        return np.log(sum(each / each.sum() for each in odds) / 6)

    found = measured[2]["ensemble"]
    assert found["logits"] == pytest.approx(plain_score(data, data.test, mean_logits), rel=1e-6)
    assert found["probabilities"] == pytest.approx(plain_score(data, data.test, mean_probabilities), rel=1e-6)
    assert found["logits"] != found["probabilities"]
    assert measured[1]["held"] == found


def test_scores_are_those_of_a_plain_loop(measured: dict[int, dict[str, Any]]) -> None:
    assert measured[3]["shared"] == pytest.approx(linear_score(0.02), rel=1e-6)
    assert 80 < measured[3]["shared"]["top1"] < measured[3]["shared"]["top5"] < 100  # it does tell digits apart
    for j in (0, 5):
        assert measured[3]["replicas"][j] == pytest.approx(linear_score(0.01 * (j + 1)), rel=1e-6)


@pytest.mark.parametrize("what", ["shared", "replicas", "sharded", "near", "far", "apart", "ensemble", "held"])
def test_bits_are_the_same_on_1_2_and_3_ranks(measured: dict[int, dict[str, Any]], what: str) -> None:
    """Scores, and recalibrated state dicts; with an offset of 3,000, the order of fp64 sums shows."""
    assert measured[1][what] == measured[2][what] == measured[3][what]


def test_shards_of_a_replica_count_every_image_once(measured: dict[int, dict[str, Any]]) -> None:
    assert measured[3]["sharded"] == [measured[1]["shared"]]


class Table(nn.Module):
    """An image's only pixel names its row of logits."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[images[:, 0, 0, 0].long()]


def test_a_score_by_hand() -> None:
    """Of weights w, p_c = w_c / sum w. Here 32/64, 4/64 (the fourth largest) and 1/64 (one of the last two)."""
    odds = torch.tensor([1.0, 2, 4, 8, 16, 32, 1])
    images = Arrays(np.array([[[0]], [[1]], [[0]]], dtype=np.uint8), [5, 0, 0])
    data = replace(digits(), test=images, classes=7, size=1, native=1, mean=(0.0,), std=(1 / 255,))
    rows = torch.stack([odds.log(), odds[[2, 1, 0, 3, 4, 5, 6]].log() + 100])  # a constant changes no probability
    score = make_evaluator(Config(evaluate=EvaluateConfig(batch_size=2)), data, images, ALONE).shared(Table(rows))
    nll = (math.log(2) + math.log(16) + math.log(64)) / 3
    assert score == pytest.approx({"top1": 100 / 3, "top5": 200 / 3, "nll": nll}, abs=1e-5)


@pytest.mark.parametrize("classes", [3, 4, 5, 6])
def test_top5_is_a_figure_of_five_classes_or_more(tmp_path: Path, classes: int) -> None:
    """One image of each class, and always the logits 0, 1, 2, ...: the last classes are right."""
    for folder in [tmp_path / split / str(c) for split in ("train", "val") for c in range(classes)]:
        folder.mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(folder / "image.png")
    data = open_dataset(DataConfig(name="imagefolder", root=str(tmp_path), size=1), seed=0)
    model = Table(torch.arange(0.0, classes).repeat(1, 1).bfloat16())  # as with precision bf16; the sums are fp64
    expected = {"top1": 100 / classes, "nll": math.log(sum(map(math.exp, range(classes)))) - (classes - 1) / 2}
    if classes >= 5:
        expected["top5"] = 100 * 5 / classes
    black = replace(data, mean=(0.0,) * 3)
    assert make_evaluator(Config(), black, data.test, ALONE).shared(model) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("raises", [False, True])
def test_evaluation_mode_ends_with_each_modules_own(raises: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2).eval(), nn.Dropout()), nn.Linear(2, 2).eval())
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError) if raises else nullcontext(), evaluating(model):
        assert not any(module.training for module in model.modules())
        if raises:
            raise KeyError
    assert [module.training for module in model.modules()] == before == [True, True, True, False, True, False]


def test_recalibration_is_the_closed_form(measured: dict[int, dict[str, Any]]) -> None:
    """Mean and unbiased variance over all inputs of a layer, 350 images of 4 iterations and 7 updates, in fp64.

    A layer behind another sees what that makes of each batch by the batch's own statistics.
    """
    expected = closed_form(normed(0.5), range(6))
    found = measured[3]["near"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # all that is no running statistic stays, counts of batches too
        assert np.array(found[name]) == pytest.approx(value.numpy(), rel=1e-5, abs=1e-6), name


def test_apart_each_replicas_model_is_measured_over_its_own_batches(measured: dict[int, dict[str, Any]]) -> None:
    for number in range(6):
        expected = closed_form(normed(0.5), [number])["2.running_var"]
        assert measured[2]["apart"][number] == pytest.approx(expected.tolist(), rel=1e-5)


def closed_form(model: nn.Sequential, replicas: Sequence[int]) -> dict[str, Tensor]:
    data = digits()
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    inputs: dict[str, list[np.ndarray]] = {"2": [], "6": []}
    for batch in (
        each for hosted in map(batches(data, replicas).__getitem__, range(4)) for own in hosted for each in own
    ):
        x = (batch.images.numpy().reshape(-1, 256) / 255 - data.mean[0]) / data.std[0]
        x = x @ state["1.weight"].T + state["1.bias"]
        inputs["2"].append(x)
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * state["2.weight"] + state["2.bias"]
        x = np.maximum(x, 0) @ state["5.weight"].T + state["5.bias"]
        inputs["6"].append(x)
    expected = {**model.state_dict()}
    for name, values in inputs.items():
        assert sum(map(len, values)) == 50 * sum(len(OWN[j]) for j in replicas)
        expected[f"{name}.running_mean"] = torch.tensor(np.concatenate(values).mean(axis=0))
        expected[f"{name}.running_var"] = torch.tensor(np.concatenate(values).var(axis=0, ddof=1))
    return expected


def test_recalibration_restores_modes_and_momenta_even_when_it_fails() -> None:
    def failing() -> Iterator[Any]:
        yield batches(digits(), range(1))[0]
        raise KeyError

    model = normed(0.0).train()
    model[6].eval()
    with pytest.raises(KeyError):
        recalibrate([model], failing(), Normalize((0.306,), (0.319,), ALONE.device, False), "fp32", ALONE)
    assert (model[2].momentum, model[6].momentum) == (0.3, None)
    assert [module.training for module in model] == [True] * 6 + [False]
    assert (model[2].num_batches_tracked.item(), model[6].num_batches_tracked.item()) == (0, 0)
