"""The plane through three networks' weights, in the basis of Garipov et al. (arXiv 1802.10026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lookaround_ddp.analysis.scoring import State, parameters_of
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import mean_state

FLAT = 1e-6  # a third network this near to the line of two, relative to their distance, spans no plane with them


@dataclass(frozen=True)
class Plane:
    """Places (x, y) are w0 + x u + y v: u points from w0 to w1, v at a right angle to it towards w2, both of length 1.

    All distances are L2 norms over parameters; buffers have no say in it.
    """

    corners: Sequence[State]
    width: float  # |w1 - w0|
    foot: float  # x of w2
    height: float  # y of w2
    origin: Tensor
    u: Tensor
    v: Tensor

    def state(self, x: float, y: float) -> State:
        """Returns the weights at (x, y): the same mixture of the corners for all tensors, buffers too.

        A running variance that would be negative, far outside of the triangle, is 0.
        """
        third = y / self.height
        second = (x - third * self.foot) / self.width
        state = mean_state(self.corners, [1 - second - third, second, third])
        for name, value in state.items():
            if name.endswith("running_var"):
                value.clamp_(min=0)
        return state

    def place(self, weights: Tensor) -> tuple[float, float, float]:
        """Returns x and y of the place of the plane that is nearest to some parameters, and their distance to it."""
        way = weights - self.origin
        x, y = float(way @ self.u), float(way @ self.v)
        return x, y, float((way - x * self.u - y * self.v).norm())


def plane_through(model: nn.Module, corners: Sequence[State]) -> Plane:
    """Returns the plane through three networks; raises UserError if they are on one line."""
    w0, w1, w2 = (parameters_of(model, state) for state in corners)
    width = float((w1 - w0).norm())
    if width == 0:
        raise UserError("the first two networks are the same: no plane goes through them")
    u = (w1 - w0) / width
    foot = float((w2 - w0) @ u)
    v = w2 - w0 - foot * u
    height = float(v.norm())
    if height <= FLAT * max(width, abs(foot)):
        raise UserError("the three networks are on one line: no plane goes through them")
    return Plane(corners, width, foot, height, w0, u, v / height)


def axis(values: Sequence[float], margin: float, points: int) -> NDArray[np.float64]:
    """Returns a grid's coordinates, shape (points,), from the least to the greatest value and a margin around them."""
    low, high = min(values), max(values)
    around = margin * (high - low)
    return np.linspace(low - around, high + around, points)
