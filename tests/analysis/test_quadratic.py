"""The noisy quadratic model: closed forms against values worked out by hand, a recursion, and a simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookaround_ddp.analysis.theory.noisy_quadratic import Model, MonteCarlo, least_replicas, variance_ratio
from tests.support.runs import Job


def model(a: float = 1.0, gamma: float = 0.1, sigma2: float = 2.0) -> Model:
    return Model(np.array([a]), gamma, np.array([sigma2]))


def recursion(step: float, sigma2: float, mix: np.ndarray, k: int, rho: float = 0.0) -> float:
    """The variance of the first of some weights, which take k noisy steps and are then mixed, over and over.

    Their covariance C becomes (1 - step)^2 C + step^2 sigma^2 R with each step, R the noise's correlation, and
    M C M^T when they are mixed. The last weight takes no steps: it is phi before the round (Lookahead's slow one).
    """
    size = len(mix) - 1
    moves = np.diag([1 - step] * size + [1.0])
    noise = np.zeros((size + 1, size + 1))
    noise[:size, :size] = step**2 * sigma2 * (rho + (1 - rho) * np.eye(size))
    covariance = np.zeros((size + 1, size + 1))
    for _ in range(3000):
        for _ in range(k):
            covariance = moves @ covariance @ moves.T + noise
        covariance = mix @ covariance @ mix.T
    return float(covariance[0, 0])


def mean_of(d: int, slow: float = 0.0) -> np.ndarray:
    """Every weight, and the one that stands still, becomes the mean of the d that move; a share stays `slow`."""
    return np.tile([(1 - slow) / d] * d + [slow], (d + 1, 1))


def test_values_worked_out_by_hand() -> None:
    """SGD: .01 * 2 / (1 - .81) = .02/.19. Lookahead, B = .9^5: .5 * 1.59049 / (1.5 + .295245) of it."""
    assert model().sgd() == pytest.approx(0.02 / 0.19)
    assert model().printed_sgd() == pytest.approx(0.04 / 0.19)
    assert model().lookahead(5, 0.5) == pytest.approx(0.795245 / 1.795245 * 0.02 / 0.19)
    assert model().lookaround(3) == pytest.approx(0.0350877, abs=1e-7)
    assert model().mended_lookaround(5, 3) == pytest.approx(0.0298, abs=5e-5)
    assert model().mended_lookaround(1, 3) == pytest.approx(0.0145, abs=5e-5)
    assert model().lookahead(7, 1.0) == model().sgd()
    assert model().lookaround(1) == model().sgd()
    assert model().lookaround(3, rho=1.0) == pytest.approx(model().sgd())


@pytest.mark.parametrize(("a", "gamma", "sigma2", "k"), [(1.0, 0.1, 2.0, 5), (2.0, 0.3, 0.5, 2)])
def test_what_is_printed_is_equations_4_to_6(a: float, gamma: float, sigma2: float, k: int) -> None:
    """As they stand in the paper, each a multiple of the one before, with Sigma^2; and with Sigma for it, mended."""
    alpha, d, one, two = 0.5, 3, (1 - gamma * a) ** k, (1 - gamma * a) ** (2 * k)
    for power in (2, 1):
        sgd = gamma**2 * a**2 * sigma2**power / (1 - (1 - gamma * a) ** 2)
        sum_ = alpha**2 * (1 - two) + 2 * alpha * (1 - alpha) * (1 - one)
        lookahead = alpha**2 * (1 - two) / sum_ * sgd
        lookaround = sum_ / (alpha**2 * (d - (d - 1) * two)) * lookahead
        theory = model(a, gamma, sigma2)
        found = theory.sgd(), theory.lookahead(k, alpha), theory.mended_lookaround(k, d)
        if power == 2:
            found = theory.printed_sgd(), theory.printed_lookahead(k, alpha), theory.printed_lookaround(k, d)
        assert np.concatenate(found) == pytest.approx([sgd, lookahead, lookaround])
        if a == 1.0:  # the README's
            expected = (0.2105, 0.0933, 0.0595) if power == 2 else (0.1053, 0.0466, 0.0298)
            assert np.concatenate(found) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("k", [1, 2, 5, 30])
@pytest.mark.parametrize(("a", "gamma", "sigma2"), [(1.0, 0.1, 2.0), (0.5, 0.04, 3.0), (2.0, 0.8, 0.5)])
def test_the_closed_forms_are_the_fixed_points(k: int, a: float, gamma: float, sigma2: float) -> None:
    """Of the exact recursion of the covariance of all weights; with gamma a > 1, B is negative for odd k."""
    theory, step = model(a, gamma, sigma2), gamma * a
    assert theory.sgd() == pytest.approx(recursion(step, sigma2, mean_of(1), k))
    for alpha in (0.2, 0.5, 0.9):
        assert theory.lookahead(k, alpha) == pytest.approx(recursion(step, sigma2, mean_of(1, 1 - alpha), k))
    for d, rho in ((2, 0.0), (3, 0.0), (3, 0.4), (6, 0.9)):
        assert theory.lookaround(d, rho) == pytest.approx(recursion(step, sigma2, mean_of(d), k, rho))


def test_the_simulation_agrees_within_its_errors() -> None:
    """Of two coordinates; the paper's formula for Lookaround is far outside of them."""
    theory = Model(np.array([1.0, 2.0]), 0.1, np.array([2.0, 0.5]))
    chains = MonteCarlo(theory, 50_000, seed=1)
    for (found, error), expected in (
        (chains.sgd(), theory.sgd()),
        (chains.lookahead(5, 0.5), theory.lookahead(5, 0.5)),
        (chains.lookaround(5, 3, 0.0), theory.lookaround(3)),
        (chains.lookaround(2, 3, 0.5), theory.lookaround(3, 0.5)),
    ):
        assert (np.abs(found - expected) < 4 * error).all()
        assert error == pytest.approx(expected * (2 / 50_000) ** 0.5, rel=0.03)
    found, error = chains.lookaround(5, 3, 0.0)
    assert (np.abs(found - theory.mended_lookaround(5, 3)) > 15 * error).any()


def test_the_bound_on_replicas_is_tight() -> None:
    """2 / alpha - 1: 3 for 1/2, 2 for 2/3, 19 for .1. One replica fewer has the greater variance near B = 0."""
    b = np.linspace(1e-6, 1 - 1e-6, 1001)
    for alpha, least in ((0.5, 3), (2 / 3, 2), (0.6, 3), (0.1, 19), (1.0, 1), (0.4, 4)):
        assert least_replicas(alpha) == least
        assert (variance_ratio(b, alpha, least) <= 1).all()
        assert least == 1 or variance_ratio(b, alpha, least - 1).max() > 1
    own = model().lookaround(4) / model().lookahead(3, 0.3)
    assert own == pytest.approx(variance_ratio(model().decay(3), 0.3, 4))


def analyze(*arguments: str, expect: int = 0) -> str:
    job = Job("analyze", *arguments)
    assert job.wait() == [expect], job.said()
    return job.said()


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    said = analyze("quadratic", "--a=1,2", "--chains=1000", f"--out={tmp_path}/new/noise")
    numbers = json.loads((tmp_path / "new" / "noise.json").read_text())
    lookaround = numbers["variances"]["Lookaround"]
    assert lookaround["corrected"] == pytest.approx([0.02 / 0.19 / 3, 0.08 / 0.36 / 3])
    assert numbers["settings"]["sigma2"] == [2, 2]
    assert numbers["decay"] == pytest.approx([0.9**5, 0.8**5])
    row = next(line for line in said.splitlines() if line.startswith(" Lookaround "))
    assert row.split()[1:5] == ["1", "0.059549", "0.029775", "0.035088"]
    with Image.open(tmp_path / "new" / "noise.png") as image:
        assert (image.format, image.size) == ("PNG", (1210, 484))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gamma=2"], "error: --gamma is 2: SGD converges between 0 and 2 / A, here 2"),
        (["--a=1,2,3", "--sigma2=1,2"], "error: --sigma2 has 2 values and --a 3: give one, or one for each"),
        (["--alpha=0"], "error: --alpha is 0: it is greater than 0"),
        (["--rho=-0.1"], "error: --rho is -0.1: give 0"),
        (["--d=0"], "error: --d is 0: give 1 or more"),
        (["--gamma=1e-7"], "give fewer --chains (0: none), or a larger --gamma"),
        (["--a=-1"], "error: --a: curvatures are greater than 0"),
        (["--out=/proc/none/x"], "error: "),
        (["--a=1,nan"], "error: argument --a: invalid numbers value: '1,nan'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    *_, line = analyze("quadratic", f"--out={tmp_path}/x", *arguments, expect=2).splitlines()
    assert message in line
    assert not (tmp_path / "x.json").exists()
