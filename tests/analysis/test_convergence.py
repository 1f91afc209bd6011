"""Rates of momentum methods: closed forms, values worked out apart, and the methods themselves, step by step."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookaround_ddp.analysis.theory.momentum import METHODS, SPECTRA, RoundMatrices, optimum
from tests.support.runs import Job


def gain(method: str, kappa: float, rounds: RoundMatrices | None = None) -> float:
    """1 - rate at the best learning rate."""
    return 1 - (rounds or RoundMatrices()).best(method, np.array([1 / kappa, 1]))[1]


def test_values_worked_out_apart() -> None:
    """Momentum, where gamma can put all curvatures in the oscillating range: both roots have the size sqrt(beta)."""
    expected = {
        "classical momentum": (0.0050, 0.0050),
        "Lookahead": (0.050, 0.0159),
        "trajectory average": (0.078, 0.012),
    }
    for method, (ten, thousand) in expected.items():
        assert gain(method, 10) == pytest.approx(ten, rel=0.01)
        assert gain(method, 1e3) == pytest.approx(thousand, rel=0.01)
    assert gain("classical momentum", 10) == pytest.approx(1 - math.sqrt(0.99))


def test_the_optimum_is_momentum_s_where_beta_fits() -> None:
    """kappa = 9: rate 1/2, beta 1/4, gamma 9/4. With beta = .99 nothing is better at any kappa of the figure."""
    assert optimum(9.0) == pytest.approx(0.5)
    gamma, rate = RoundMatrices(k=1, beta=0.25).best("classical momentum", np.array([1 / 9, 1]))
    assert (gamma, rate) == pytest.approx((2.25, 0.5), rel=1e-3)
    kappa = ((1 + math.sqrt(0.99)) / (1 - math.sqrt(0.99))) ** 2  # 158,000: where .99 fits
    assert gain("classical momentum", kappa) == pytest.approx(1 - optimum(kappa), rel=1e-3)
    for kappa in (10.0, 1e3, 1e5, 1e7):
        assert all(gain(method, kappa) < 1 - optimum(kappa) for method in METHODS)


def test_without_momentum_they_are_closed_forms() -> None:
    """Gradient descent: 2/(kappa + 1) at 2/(1 + 1/kappa). A mean with the round's start takes the same steps, shorter.

    With k = 1 the trajectory average is Lookahead with alpha 1/2, and twice the learning rate makes up for it.
    """
    shares = {"classical momentum": 1.0, "Lookahead": 0.25, "trajectory average": 0.5}
    for kappa in (3.0, 50.0, 1e4):
        for method, share in shares.items():
            gamma, rate = RoundMatrices(k=1, beta=0.0, alpha=0.25).best(method, np.array([1 / kappa, 1]))
            assert 1 - rate == pytest.approx(2 / (kappa + 1), rel=1e-4)
            assert share * gamma == pytest.approx(2 / (1 + 1 / kappa), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kappa", "spectrum"), [(10, "ends"), (1e3, "ends"), (1e7, "ends"), (30, "log"), (30, "linear")]
)
def test_the_methods_converge_as_fast_as_computed(method: str, kappa: float, spectrum: str) -> None:
    """Within 1 % of 1 - rate, by steps and doubling; and by steps alone, over 40 e-foldings, where they are few."""
    rounds, eigenvalues = RoundMatrices(), SPECTRA[spectrum](kappa, 5)
    gamma, rate = rounds.best(method, eigenvalues)
    assert 1 - rounds.simulated(method, gamma, eigenvalues) == pytest.approx(1 - rate, rel=0.01)
    if kappa > 1e4:
        return
    states = [(1.0, 0.5)] * len(eigenvalues)
    count = math.ceil(40 / (1 - rate) / rounds.k)
    sizes = []
    for _ in range(2 * count):
        states = [rounds.round(method, gamma, a, *state) for a, state in zip(eigenvalues, states, strict=True)]
        sizes.append(max(math.hypot(*state) for state in states))
    middle, end = max(sizes[count - 20 : count]), max(sizes[-20:])  # an oscillation's top
    assert -math.log(end / middle) / (count * rounds.k) == pytest.approx(-math.log(rate), rel=0.1)


def test_a_long_round_overflows_silently() -> None:
    """M^2000 is beyond fp64 for what diverges. Momentum's best rate does not depend on k."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gain("classical momentum", 10, RoundMatrices(k=2000)) == pytest.approx(1 - math.sqrt(0.99))
        assert 0 < gain("Lookahead", 10, RoundMatrices(k=2000)) < 1


def test_the_search_finds_what_a_much_finer_grid_finds() -> None:
    rounds, eigenvalues = RoundMatrices(), np.array([1e-3, 1])
    for method in METHODS[1:]:
        finest = rounds.rate(method, np.linspace(0.01, 4.3, 120_001), eigenvalues).min()
        assert rounds.best(method, eigenvalues)[1] <= finest + 1e-12


def test_replicas_without_noise_coincide_and_are_momentum() -> None:
    """Three replicas of one quadratic, averaged after each round, each with its own velocity."""
    rounds, gamma, a = RoundMatrices(k=4), 0.3, 0.7
    alone, replicas = (1.0, 0.0), [(1.0, 0.0)] * 3
    for _ in range(5):
        alone = rounds.round("classical momentum", gamma, a, *alone)
        replicas = [rounds.round("classical momentum", gamma, a, *each) for each in replicas]
        phi = sum(theta for theta, _ in replicas) / 3
        replicas = [(phi, velocity) for _, velocity in replicas]
        assert phi == pytest.approx(alone[0])


def analyze(*arguments: str, expect: int = 0) -> str:
    job = Job("analyze", *arguments)
    assert job.wait() == [expect], job.said()
    return job.said()


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    said = analyze("convergence", "--kappa=10,100", f"--out={tmp_path}/rates.png")
    numbers = json.loads((tmp_path / "rates.json").read_text())
    assert list(numbers["methods"]) == list(METHODS)
    gains = [f"{rows[0]['gain']:.4g}" for rows in numbers["methods"].values()]
    assert gains[0] == "0.005013"
    assert numbers["optimum"][1] == {"kappa": 100, "gain": pytest.approx(2 / 11)}
    assert any(line.split() == ["10", *gains, "0.4805"] for line in said.splitlines())
    with Image.open(tmp_path / "rates.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kappa=1,10"], "error: --kappa has 1: condition numbers are greater than 1"),
        (["--beta=1"], "error: --beta is 1: momentum is 0 or more and less than 1"),
        (["--eigenvalues=1"], "error: --eigenvalues is 1: give 2 or more"),
        (["--k=0"], "error: --k is 0: give 1 or more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    (line,) = analyze("convergence", f"--out={tmp_path}/x", *arguments, expect=2).splitlines()
    assert line.startswith(message)
