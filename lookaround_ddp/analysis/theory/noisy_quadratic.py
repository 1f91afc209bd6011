r"""The noisy quadratic model: steady-state variances of SGD, Lookahead and Lookaround, derived and simulated.

The loss is 1/2 (theta - c)^T A (theta - c), A diagonal, with an optimum c ~ N(0, Sigma) that is drawn anew for each
step. Coordinates do not interact, so a, sigma^2 and V below are those of one of them, or arrays of all.

**SGD.** A step is theta' = theta - gamma a (theta - c) = (1 - gamma a) theta + gamma a c, with c independent of
theta, so V' = (1 - gamma a)^2 V + gamma^2 a^2 sigma^2. It stands still at

    V_SGD = gamma^2 a^2 sigma^2 / (1 - (1 - gamma a)^2).                 (printed with Sigma^2 for Sigma: a slip)

**k steps** from phi: theta_k = B phi + n_k with B = (1 - gamma a)^k, and n_k independent of phi. Its variance is that
of SGD from a fixed point, N = gamma^2 a^2 sigma^2 (1 + (1 - gamma a)^2 + ... + (1 - gamma a)^(2 (k - 1)))

    N = gamma^2 a^2 sigma^2 (1 - B^2) / (1 - (1 - gamma a)^2) = (1 - B^2) V_SGD.

**Lookahead.** phi' = (1 - alpha) phi + alpha theta_k = (1 - alpha + alpha B) phi + alpha n_k, so that
V = (1 - alpha + alpha B)^2 V + alpha^2 (1 - B^2) V_SGD. With 1 - (1 - alpha + alpha B)^2 = alpha (1 - B) (2 - alpha +
alpha B) and 1 - B^2 = (1 - B) (1 + B)

    V_Lookahead = alpha (1 + B) / (2 - alpha + alpha B) V_SGD.           (as printed, but for V_SGD's slip)

**Lookaround.** phi' = 1/d sum_j (B phi + n_j) = B phi + 1/d sum_j n_j: all replicas start from the same phi, whose
variance the mean does not divide. The variance of a mean of d numbers with pairwise correlation rho is (1 + (d - 1)
rho)/d of one's, so V' = B^2 V + (1 + (d - 1) rho)/d (1 - B^2) V_SGD, and for every k

    V_Lookaround = (1 + (d - 1) rho)/d V_SGD.

The paper (rho = 0) takes V[theta_k] = N for the replicas' own variances, without B^2 V[phi] (Lemma 1; eq. 9 and 11),
beside B^2 V[phi] for the d (d - 1) covariances. That gives V' = (d - 1)/d B^2 V + N/d, and

    printed: V = (1 - B^2) / (d - (d - 1) B^2) V_SGD,

which is too small, the more so the smaller k is, and in print has the slip of V_SGD too.

**Which is smaller?** V_Lookaround / V_Lookahead = (2 - alpha + alpha B) / (d alpha (1 + B)) for rho = 0. Its derivative
by B is (2 alpha - 2) / (d alpha (1 + B)^2) <= 0, so over B in (0, 1) its supremum is the limit at B -> 0,
(2 - alpha) / (d alpha). Lookaround has the smaller variance for all of them exactly if d >= (2 - alpha)/alpha: the
paper's "d >= 3, alpha >= 1/2" is right and tight; d = 2 fails for alpha < 2/3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lookaround_ddp.errors import UserError

Array = NDArray[np.float64]


REST = 1e-6  # of the steady state's variance that may lack when a simulation is measured: far below its noise


MOST_DRAWS = 10**11  # about half an hour


@dataclass(frozen=True)
class Model:
    """a, sigma2: of each coordinate, shape (n,).

    Raises:
        UserError: values for which there is no steady state, or that mean nothing.
    """

    a: Array
    gamma: float
    sigma2: Array

    def __post_init__(self) -> None:
        if self.a.shape != self.sigma2.shape:
            raise UserError(f"--sigma2 has {len(self.sigma2)} values and --a {len(self.a)}: give one, or one for each")
        if not (self.a > 0).all():
            raise UserError("--a: curvatures are greater than 0")
        if not (self.sigma2 >= 0).all():
            raise UserError("--sigma2: variances are 0 or greater")
        if not 0 < self.gamma < 2 / self.a.max():
            raise UserError(f"--gamma is {self.gamma:g}: SGD converges between 0 and 2 / A, here {2 / self.a.max():g}")

    def decay(self, k: int) -> Array:
        """Returns B, the share of the distance to the optimum that k steps leave."""
        return (1 - self.gamma * self.a) ** k

    def sgd(self) -> Array:
        step = self.gamma * self.a
        return step * self.sigma2 / (2 - step)  # 1 - (1 - s)^2 = s (2 - s)

    def printed_sgd(self) -> Array:
        """Returns SGD's variance as the paper prints it, with Sigma^2 for Sigma (eq. 4)."""
        return self.sgd() * self.sigma2

    def lookahead(self, k: int, alpha: float) -> Array:
        b = self.decay(k)
        return alpha * (1 + b) / (2 - alpha + alpha * b) * self.sgd()

    def printed_lookahead(self, k: int, alpha: float) -> Array:
        """Returns Lookahead's variance as the paper prints it: a multiple of what it has for SGD's (eq. 5)."""
        return self.lookahead(k, alpha) * self.sigma2

    def lookaround(self, d: int, rho: float = 0.0) -> Array:
        return (1 + (d - 1) * rho) / d * self.sgd()

    def printed_lookaround(self, k: int, d: int) -> Array:
        """Returns Lookaround's variance as the paper prints it: a multiple of what it has for Lookahead's (eq. 6)."""
        return self.mended_lookaround(k, d) * self.sigma2

    def mended_lookaround(self, k: int, d: int) -> Array:
        """Returns what the paper prints for Lookaround, but with Sigma for Sigma^2: it lacks a term alone."""
        b = self.decay(k)
        return (1 - b**2) / (d - (d - 1) * b**2) * self.sgd()


def variance_ratio(b: Array, alpha: float, d: int) -> Array:
    """Returns V_Lookaround / V_Lookahead, for independent noise."""
    return (2 - alpha + alpha * b) / (d * alpha * (1 + b))


def least_replicas(alpha: float) -> int:
    """Returns the fewest replicas whose variance is below Lookahead's for every B in (0, 1)."""
    return math.ceil((2 - alpha) / alpha - 1e-12)  # 2 / (2/3) - 1 is not quite 2


class MonteCarlo:
    """Runs the three methods as they are defined, many chains at once, until they stand still.

    Each method returns the chains' variance of every coordinate, and its standard error.
    """

    def __init__(self, model: Model, chains: int, seed: int) -> None:
        if chains < 2:
            raise UserError(f"--chains is {chains}: a variance needs 2 or more (0: no simulation)")
        self.model, self.chains, self.random = model, chains, np.random.default_rng(seed)

    def sgd(self) -> tuple[Array, Array]:
        return self._settled(self.model.decay(1), 1, lambda phi, place: self._steps(phi, place, 1))

    def lookahead(self, k: int, alpha: float) -> tuple[Array, Array]:
        def round_(phi: Array, place: int) -> Array:
            return (1 - alpha) * phi + alpha * self._steps(phi, place, k)

        return self._settled(1 - alpha + alpha * self.model.decay(k), k, round_)

    def lookaround(self, k: int, d: int, rho: float) -> tuple[Array, Array]:
        def round_(phi: Array, place: int) -> Array:
            common = self._draws(k) if rho > 0 else None  # the part of the noise that all replicas share
            total = np.zeros_like(phi)
            for _ in range(d):
                total += self._steps(phi, place, k, rho, common)
            return total / d

        return self._settled(self.model.decay(k), k * d, round_)

    def _settled(self, factor: Array, draws: int, round_: Callable[[Array, int], Array]) -> tuple[Array, Array]:
        """Simulates rounds until what is left of the start is negligible; returns the variance and its standard error.

        Args:
            factor: of each coordinate; a round leaves factor^2 of the start's variance.
            draws: how many random numbers each chain draws in a round.
        """
        slowest = float(np.abs(factor).max())
        rounds = 1 if slowest == 0 else math.ceil(math.log(REST) / (2 * math.log(slowest)))
        if rounds * draws * self.chains * len(factor) > MOST_DRAWS:
            raise UserError(
                f"the simulation would take {rounds * draws:,} steps of {self.chains:,} chains until it stands still: "
                "give fewer --chains (0: none), or a larger --gamma"
            )
        variances = []
        for place in range(len(factor)):
            phi = np.zeros(self.chains)
            for _ in range(rounds):
                phi = round_(phi, place)
            variances.append(phi.var(ddof=1))
        variance = np.array(variances)
        return variance, variance * math.sqrt(2 / (self.chains - 1))  # the chains are normal

    def _steps(self, start: Array, place: int, k: int, rho: float = 0.0, common: Array | None = None) -> Array:
        theta = start.copy()
        step, sigma = self.model.gamma * self.model.a[place], math.sqrt(self.model.sigma2[place])
        for number in range(k):
            draw = self.random.standard_normal(self.chains)
            if common is not None:
                draw = math.sqrt(rho) * common[number] + math.sqrt(1 - rho) * draw
            theta -= step * (theta - sigma * draw)
        return theta

    def _draws(self, k: int) -> Array:
        return self.random.standard_normal((k, self.chains))
