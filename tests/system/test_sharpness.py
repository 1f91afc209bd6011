"""Hessians and directions that someone worked out, and the command on finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from lookaround_ddp.analysis import hessian
from lookaround_ddp.analysis.hessian import hessian_vector_product, top_eigenvalue
from lookaround_ddp.analysis.scoring import lone_scorer
from lookaround_ddp.analysis.sharpness import eigenvalue, filter_normalized, perturb
from lookaround_ddp.config.load import load_config
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError
from tests.support.analyses import analysis, analyze


def test_products_with_a_hessian_worked_out_by_hand() -> None:
    """f = x^3 y + 2 z^2 + 3 w, as terms: f_xx = 6 x y, f_xy = 3 x^2, f_zz = 4; a linear parameter's are zeros."""
    x, y, z, w = (torch.tensor([value], requires_grad=True) for value in (2.0, 5.0, 1.0, 7.0))
    terms = [lambda: (x**3 * y).sum(), lambda: (2 * z**2 + 0 * x).sum(), lambda: (3 * w).sum()]
    vector = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    found = hessian_vector_product(lambda: terms, [x, y, z, w], vector)
    assert found.tolist() == [60 + 120, 12, 400, 0]


def test_the_top_eigenvalue_is_the_largest_not_the_farthest_from_zero() -> None:
    """Of Q diag(-9, ..., 4, 5) Q^T; its eigenvector is Q's last column."""
    generator = np.random.default_rng(0)
    basis = torch.from_numpy(np.linalg.qr(generator.standard_normal((40, 40)))[0])
    values = torch.cat([torch.tensor([-9.0]), torch.linspace(0, 4, 38), torch.tensor([5.0])]).double()
    matrix = basis @ torch.diag(values) @ basis.T
    value, vector, products = top_eigenvalue(lambda v: matrix @ v, 40, 1e-6, seed=3)
    assert value == pytest.approx(5)
    assert abs(float(vector @ basis[:, -1])) == pytest.approx(1)
    assert products > 5


def test_an_eigenvalue_that_does_not_converge_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 eigenvalues close together, and one restart."""
    monkeypatch.setattr(hessian, "MOST_ITERATIONS", 1)
    with pytest.raises(UserError, match=r"did not converge in \d+ products: give a larger --tolerance"):
        top_eigenvalue(lambda v: torch.linspace(0.999, 1, 1000).double() * v, 1000, 1e-12, seed=0)


def test_a_flat_loss_and_one_that_is_no_number() -> None:
    """H = 0 has the eigenvalue 0, which ARPACK refuses to find; NaN is a line."""
    value, vector, _ = top_eigenvalue(lambda v: 0 * v, 40, 1e-3, seed=0)
    assert value == 0
    assert float(vector.norm()) == pytest.approx(1)
    with pytest.raises(UserError, match="the Hessian has inf or NaN in it"):
        top_eigenvalue(lambda v: v / 0, 40, 1e-3, seed=0)


def test_a_direction_has_each_filter_s_own_length() -> None:
    """And moves neither biases nor norms; another network of this structure gets the same draws, by its own lengths."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    direction = filter_normalized(model, state, seed=0, number=1)
    assert sorted(direction) == ["0.weight", "3.weight"]
    for name, way in direction.items():
        own = state[name].double().flatten(1)
        assert way.flatten(1).norm(dim=1).tolist() == pytest.approx(own.norm(dim=1).tolist())
    twice = {name: 2 * value for name, value in state.items()}
    other = filter_normalized(model, twice, seed=0, number=1)
    assert torch.allclose(other["0.weight"], 2 * direction["0.weight"])
    assert not torch.allclose(filter_normalized(model, state, seed=0, number=2)["0.weight"], direction["0.weight"])
    there = perturb(state, direction, 0.5)
    assert torch.allclose(there["0.weight"], state["0.weight"] + 0.5 * direction["0.weight"].float())
    assert there["0.bias"] is state["0.bias"]


def test_tied_filters_move_together() -> None:
    model = nn.ModuleDict({"one": nn.Linear(3, 3), "other": nn.Linear(3, 3)})
    model["other"].weight = model["one"].weight
    direction = filter_normalized(model, model.state_dict(), seed=0, number=0)
    assert torch.equal(direction["one.weight"], direction["other.weight"])


def test_the_eigenvalue_of_a_softmax_is_a_closed_form(analysed: Path) -> None:
    """A linear softmax network with zero weights on images x: H = mean of (diag(p) - p p^T) x x^T, p = 1/10 each.

    Its largest eigenvalue is 1/10 times that of the mean of x x^T, where x has a 1 at its end for the bias.
    """
    config = load_config(analysed / "single" / "config.yaml")
    dataset, world = open_dataset(config.data, 0), World(0, 1, 1, torch.device("cpu"), "none")
    scorer = lone_scorer(config, dataset, world, "train", images=70)
    scorer.model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    state = {name: torch.zeros_like(value) for name, value in scorer.model.state_dict().items()}
    found = eigenvalue(scorer, state, argparse.Namespace(tolerance=1e-5, seed=0))
    pixels = np.stack([np.asarray(scorer.images.image(index), dtype=np.float64) for index in range(70)]) / 255
    x = np.concatenate([((pixels - 0.306) / 0.319).reshape(70, -1), np.ones((70, 1))], axis=1)
    assert found["top_eigenvalue"] == pytest.approx(np.linalg.eigvalsh(x.T @ x / 70)[-1] / 10, rel=1e-4)
    assert found["residual"] < 1e-3
    assert found["training_images"] == 70
    scorer.model[1].bias.requires_grad = False  # then x has no 1
    found = eigenvalue(scorer, state, argparse.Namespace(tolerance=1e-5, seed=0))
    assert found["top_eigenvalue"] == pytest.approx(np.linalg.eigvalsh(x[:, :-1].T @ x[:, :-1] / 70)[-1] / 10, rel=1e-4)


def test_two_runs_on_one_rank_and_on_three(analysed: Path, tmp_path: Path) -> None:
    """The same numbers; the eigenvalue is the curvature along its direction; at radius 0 are the network's scores."""
    runs = (analysed / "single", analysed / "lookaround")
    values = ("--steps=2", "--directions=2", "--split=test", "--images=100", "--hessian-images=60", "--radius=0.2")
    said = analyze("sharpness", *runs, *values, f"--out={tmp_path}/one")
    one = analysis(tmp_path / "one")
    analyze("sharpness", *runs, *values, f"--out={tmp_path}/three", ranks=3)
    assert one == analysis(tmp_path / "three")
    assert list(one["runs"]) == [str(run) for run in runs]
    for row in one["runs"].values():
        assert row["radii"] == [0.1, 0.2]
        assert np.shape(row["nll"]) == np.shape(row["top1"]) == (2, 2)
        assert row["hessian"]["top_eigenvalue"] > 0
        assert row["hessian"]["residual"] < 0.01
    assert "filter-normalized" in said
    with Image.open(tmp_path / "one.png") as image:
        assert (image.format, image.size) == ("PNG", (1430, 462))


def test_a_place_beside_the_minimum_is_scored_as_evaluate_would(analysed: Path) -> None:
    run, world = analysed / "single", World(0, 1, 1, torch.device("cpu"), "none")
    config = load_config(run / "config.yaml")
    scorer = lone_scorer(config, open_dataset(config.data, 0), world)
    state = load_file(run / "model.safetensors")
    at = scorer.score(state)
    assert f"top-1 {at['top1']:.2f}" in analyze_evaluate(run)
    direction = filter_normalized(scorer.model, state, 0, 0)
    assert scorer.score(perturb(state, direction, 0.0)) == at
    assert scorer.score(perturb(state, direction, 5.0))["nll"] > at["nll"]


def analyze_evaluate(run: Path) -> str:
    from tests.support.runs import Job

    job = Job("evaluate", str(run))
    assert job.wait() == [0]
    return job.said()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["single", "--radius=0"], "--radius is 0: give more than 0"),
        (["single", "--tolerance=0"], "--tolerance is 0: give more than 0"),
        (["single", "--directions=0"], "--directions is 0: give 1 or more"),
        (["single", "single"], "is named twice"),
        (["nowhere"], "is not a run folder"),
        (["--steps=2", "data.root=x"], "name at least one run's folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(analysed: Path, arguments: list[str], message: str) -> None:
    named = [each if each.startswith("-") or "=" in each else f"{analysed}/{each}" for each in arguments]
    (line,) = analyze("sharpness", *named, expect=2).splitlines()
    assert line.startswith("error: ")
    assert message in line
