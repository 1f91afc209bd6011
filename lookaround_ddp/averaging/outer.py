"""An outer optimizer: it takes the movement of the replicas' mean as a gradient (DiLoCo, arXiv 2311.08105)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lookaround_ddp.averaging.matrix import Matrix
from lookaround_ddp.averaging.mean import BLOCK_ELEMENTS, Task, write_mean
from lookaround_ddp.averaging.rows import Rows
from lookaround_ddp.averaging.tensors import SUM_DTYPES

GPU_BLOCK_ELEMENTS = 2**22  # moved at a time: the memory for it stays small, and so does the number of kernels


@dataclass(frozen=True)
class Outer:
    """SGD on the parameters of phi, from which all replicas start a round; m is their mean when it ends.

        gradient = phi - m
        v <- momentum * v + gradient
        phi <- phi - lr * (gradient + momentum * v), or without nesterov phi - lr * v

    The defaults are DiLoCo's; lr 1 and momentum 0 is Lookaround, with the very same bits.
    """

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    @property
    def moves(self) -> bool:
        """Whether phi becomes anything else than the mean."""
        return (self.lr, self.momentum) != (1, 0)

    def check(self, k: int | None, delay: int, replicas: int) -> None:
        """Raises ValueError, saying what to do, unless the settings are in order and go with the others."""
        numbers = all(isinstance(each, Real) for each in (self.lr, self.momentum))
        if not numbers or not 0 < self.lr < inf or not 0 <= self.momentum < 1:
            raise ValueError(f"outer is {self}: lr is greater than 0, momentum at least 0 and less than 1")
        if k is None:
            raise ValueError("outer moves phi when a round ends, and k=None has none: give a k, or outer=None")
        if delay:
            raise ValueError(f"outer needs the mean when a round ends, not {delay} steps later: use delay=0")
        if replicas == 1:
            raise ValueError("outer takes the movement of a mean, and one replica has none: use outer=None")


class OuterStep:
    """phi and v. Each rank keeps and moves its own copy of them: they are the same on all, without a message.

    They lie in flat rows as the replicas' parameters do, but v of half precision in fp32.

    Args:
        settings: the optimizer's.

    Attributes:
        begun: whether there is a phi; if not, it is to be the next mean.
        loaded: whether it has come from a checkpoint.
    """

    def __init__(self, settings: Outer) -> None:
        self.settings = settings
        self._phi: list[Tensor] = []  # as parameters; views of rows, once they have been laid out
        self._velocity: list[Tensor] = []  # as _phi; none is zero
        self._rows: list[tuple[Tensor, Tensor]] = []  # phi and v for each matrix of the replicas
        self._matrices: list[Matrix] | None = None  # for which they have been laid out
        self.begin(None)

    def begin(self, parameters: Sequence[Tensor] | None) -> None:
        """Starts anew, with v = 0, from parameters that all replicas have, or from the next mean."""
        self._take([] if parameters is None else [parameter.detach().clone() for parameter in parameters], [])
        self.begun, self.loaded = parameters is not None, False

    def lay_out(self, rows: Rows) -> None:
        """Brings phi and v into rows like those of the replicas, if they are not there yet.

        Raises:
            ValueError: the replicas have become others than those that started from phi.
        """
        if self._matrices is rows.matrices:
            return
        phi = [torch.zeros_like(matrix.own[0, : matrix.parameters]) for matrix in rows.matrices]
        velocity = [torch.zeros_like(row, dtype=SUM_DTYPES.get(row.dtype, row.dtype)) for row in phi]
        places, velocities = rows.parameters_in(phi), rows.parameters_in(velocity)
        if [place.shape for place in places] != [each.shape for each in self._phi]:
            raise ValueError("outer: the parameters have other shapes than when the round began: call `restart` first")
        _copy(self._phi, places)
        if self._velocity:
            _copy(self._velocity, velocities)
        self._phi, self._velocity = places, velocities
        self._rows, self._matrices = list(zip(phi, velocity, strict=True)), rows.matrices

    def step(self, rows: Rows, ok: Tensor | None) -> None:
        """Moves phi, v, and all hosted replicas, which hold the mean, to phi.

        Each operation rounds for itself, so no bit depends on where an element lies, or on the kind of device.

        Args:
            ok: see `mean.Task`.
        """
        lr, momentum = self.settings.lr, self.settings.momentum
        for matrix, (phi, velocity) in zip(rows.matrices, self._rows, strict=True):
            size = BLOCK_ELEMENTS if phi.device.type == "cpu" else GPU_BLOCK_ELEMENTS
            for start in range(0, matrix.parameters, size):
                stop = min(start + size, matrix.parameters)
                task = Task(start, stop, ok=None if ok is None else ok.to(phi.device))
                replicas, before, v = matrix.own[:, start:stop], phi[start:stop], velocity[start:stop]
                gradient = before.to(v.dtype) - replicas[0]
                write_mean([v], v * momentum + gradient, task)
                move = gradient + v * momentum if self.settings.nesterov else v
                write_mean([before, *replicas], (before - move * lr).to(before.dtype), task)

    def state_dict(self) -> dict[str, Any]:
        """Returns phi and v, tensors of the shapes of the parameters, the same on all ranks."""
        return {"begun": self.begun, "phi": self._phi, "velocity": self._velocity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` returned, on any rank."""
        self._take(list(state["phi"]), list(state["velocity"]))
        self.begun, self.loaded = state["begun"], True

    def _take(self, phi: list[Tensor], velocity: list[Tensor]) -> None:
        """Takes tensors like the parameters, to be laid out."""
        self._phi, self._velocity, self._rows, self._matrices = phi, velocity, [], None


def _copy(tensors: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    for tensor, place in zip(tensors, places, strict=True):
        place.copy_(tensor)
