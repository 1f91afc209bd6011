r"""Rates of convergence on a deterministic quadratic: classical momentum, Lookahead, the paper's "Lookaround".

On one coordinate of curvature a, a step of classical momentum is v' = beta v - gamma a theta, theta' = theta + v', or
(theta', v') = M (theta, v) with M = [[1 - gamma a, beta], [-gamma a, beta]]. k steps are M^k, and a round ends with

- classical momentum: nothing;
- Lookahead: theta' = (1 - alpha) phi + alpha theta_k, phi the round's start; the velocity goes on;
- the paper's matrices for Lookaround: theta' = (theta_0 + ... + theta_k) / (k + 1), the mean of a *trajectory*.

Lookaround itself averages replicas, not moments of one. Here they coincide: all start from phi, and without noise all
take the same steps. Its rate is therefore that of classical momentum, and the third is named "trajectory average".

A round is a 2 x 2 matrix R, what it leaves of a distance is R's spectral radius, and the rate of a step its k-th root.
The whole problem is as slow as its slowest coordinate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lookaround_ddp.analysis.theory.noisy_quadratic import Array
from lookaround_ddp.errors import UserError

Entries = tuple[Array, Array, Array, Array]  # of many 2 x 2 matrices: upper row, lower row


METHODS = ("classical momentum", "Lookahead", "trajectory average")


SPECTRA: dict[str, Callable[[float, int], Array]] = {  # (condition number, eigenvalues) -> from 1 / kappa to 1
    "ends": lambda kappa, count: np.array([1 / kappa, 1.0]),
    "linear": lambda kappa, count: np.linspace(1 / kappa, 1.0, count),
    "log": lambda kappa, count: np.geomspace(1 / kappa, 1.0, count),
}


LINEAR, LOGARITHMIC, FINEST = 8000, 4000, 1e-4  # learning rates that the search begins with


VALLEYS, ZOOM, ZOOMS = 8, 33, 8  # the best valleys between them, looked into more and more closely


DOUBLINGS = 60  # of the rounds that are simulated


def optimum(kappa: float) -> float:
    """Returns the best rate of a step: that of momentum with beta = rate^2 and gamma = (1 + rate)^2 (Polyak; Fig. 2).

    No method that takes steps along gradients alone has a better one for all spectra from 1 / kappa to 1.
    """
    return float((np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1))


@dataclass(frozen=True)
class RoundMatrices:
    """What a round of k steps is made of.

    Raises:
        UserError: values that make no round.
    """

    k: int = 20
    beta: float = 0.99
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"--k is {self.k}: give 1 or more")
        if not 0 <= self.beta < 1:
            raise UserError(f"--beta is {self.beta:g}: momentum is 0 or more and less than 1")
        if not 0 < self.alpha <= 1:
            raise UserError(f"--alpha is {self.alpha:g}: it is greater than 0, and at most 1")

    def rate(self, method: str, gammas: Array, eigenvalues: Array) -> Array:
        """Returns what share of the distance to the optimum a step leaves, for each learning rate: shape (gammas,)."""
        steps = gammas[:, None] * eigenvalues
        with np.errstate(over="ignore", invalid="ignore"):  # rates that diverge, in a long round: they are no valleys
            radius = _radius(self._matrix(method, steps))
        return radius.max(axis=1) ** (1 / self.k)

    def _matrix(self, method: str, steps: Array) -> Entries:
        """Returns a round's matrix R for each step gamma a."""
        one, zero = np.ones_like(steps), np.zeros_like(steps)
        power: Entries = (one, zero, zero, one)
        total = one, zero  # of the upper rows so far: theta_0 + theta_1 + ...
        for _ in range(self.k):
            power = _times((1 - steps, self.beta * one, -steps, self.beta * one), power)
            total = total[0] + power[0], total[1] + power[1]
        a, b, c, d = power
        if method == "Lookahead":
            return 1 - self.alpha + self.alpha * a, self.alpha * b, c, d
        if method == "trajectory average":
            return total[0] / (self.k + 1), total[1] / (self.k + 1), c, d
        return power

    def best(self, method: str, eigenvalues: Array) -> tuple[float, float]:
        """Returns the learning rate with the best rate, and that rate.

        There are many valleys, narrow ones where the curvatures' oscillations end a round in step with each other: a
        grid up to what is stable and beyond, then a closer look into the best ones.
        """
        # Momentum alone is stable below 2 (1 + beta) / a. A mean with what came before damps more, for small k above
        # all: without momentum Lookahead is stable while (1 - gamma a)^k > -(2 - alpha)/alpha.
        further = max((1 + ((2 - self.alpha) / self.alpha) ** (1 / self.k)) / 2, (self.k + 1) / self.k)
        most = 2.2 * (1 + self.beta) * further / eigenvalues.max()
        least = FINEST * most * eigenvalues.min() / eigenvalues.max()
        coarse = np.linspace(0, most, LINEAR + 1)[1:]
        gammas = np.unique(np.concatenate([coarse, np.geomspace(least, most, LOGARITHMIC)]))
        rates = self.rate(method, gammas, eigenvalues)
        inner = np.flatnonzero((rates[1:-1] <= rates[:-2]) & (rates[1:-1] <= rates[2:])) + 1
        valleys = inner[np.argsort(rates[inner], kind="stable")][:VALLEYS]
        found = [self._bottom(method, gammas[place - 1], gammas[place + 1], eigenvalues) for place in valleys]
        rate, gamma = min(found)
        return gamma, rate

    def _bottom(self, method: str, left: float, right: float, eigenvalues: Array) -> tuple[float, float]:
        """Returns the lowest rate of a valley between two learning rates, and the learning rate that has it."""
        for _ in range(ZOOMS):
            gammas = np.linspace(left, right, ZOOM)
            rates = self.rate(method, gammas, eigenvalues)
            place = int(rates.argmin())
            left, right = gammas[max(place - 1, 0)], gammas[min(place + 1, ZOOM - 1)]
        return float(rates[place]), float(gammas[place])

    def simulated(self, method: str, gamma: float, eigenvalues: Array) -> float:
        """Measures the rate without eigenvalues: the method itself takes a round from two starts, then 2^60 rounds.

        R's columns are what a round makes of (theta, v) = (1, 0) and (0, 1), since a round is linear; the rounds are
        doubled by squaring, and the growth of its norm is measured (Gelfand: |R^n|^(1/n) tends to the radius).
        """
        growth = []
        for a in eigenvalues:
            columns = [self.round(method, gamma, float(a), *start) for start in ((1.0, 0.0), (0.0, 1.0))]
            matrix, logarithm = np.array(columns).T, 0.0
            for _ in range(DOUBLINGS):
                norm = float(np.linalg.norm(matrix))
                if norm == 0:
                    break
                logarithm = 2 * (logarithm + np.log(norm))
                matrix = (matrix / norm) @ (matrix / norm)
            norm = float(np.linalg.norm(matrix))
            growth.append(-np.inf if norm == 0 else (logarithm + np.log(norm)) / 2**DOUBLINGS)
        return float(np.exp(max(growth) / self.k))

    def round(self, method: str, gamma: float, a: float, theta: float, velocity: float) -> tuple[float, float]:
        """Takes a round, step by step, on a coordinate of curvature a; returns its last position and velocity."""
        phi, total = theta, theta
        for _ in range(self.k):
            velocity = self.beta * velocity - gamma * a * theta
            theta += velocity
            total += theta
        if method == "Lookahead":
            theta = (1 - self.alpha) * phi + self.alpha * theta
        if method == "trajectory average":
            theta = total / (self.k + 1)
        return theta, velocity


def _times(one: Entries, other: Entries) -> Entries:
    a, b, c, d = one
    e, f, g, h = other
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


def _radius(matrix: Entries) -> Array:
    """Returns the larger root's size of x^2 - t x + q: (|t| + sqrt(t^2 - 4 q)) / 2, or sqrt(q) for a complex pair."""
    a, b, c, d = matrix
    trace, determinant = a + d, a * d - b * c
    discriminant = (a - d) ** 2 + 4 * b * c  # t^2 - 4 q, without the cancellation
    real = (np.abs(trace) + np.sqrt(np.maximum(discriminant, 0))) / 2
    return np.where(discriminant >= 0, real, np.sqrt(np.abs(determinant)))
