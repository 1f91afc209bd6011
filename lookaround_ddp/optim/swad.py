"""SWAD: the mean of every iteration in a valley of the validation loss."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lookaround_ddp.config import TrajectoryConfig


class Swad:
    """The mean of every iteration between the start and the end of a valley of the validation loss.

    Cha et al., arXiv 2102.08604, Algorithm 1. Validations cut the run into segments. The valley begins with
    the segment whose loss is the lowest of n_converge in a row and the first of them, and its threshold is
    1 + ratio times the mean of these losses. It ends before n_tolerance losses in a row that exceed the
    threshold, or with the run, where losses above the threshold at its very end are left out too. (Their
    code differs: it goes back to segments before the start too, and counts the start's segment twice.)
    A loss that never converges leaves the mean of the last n_converge segments.
    """

    def __init__(self, config: TrajectoryConfig, model: nn.Module) -> None:
        self.config, self.network = config, deepcopy(model)
        self.losses: list[float] = []
        self.segment = _Mean()  # the mean since the last validation
        self.pending: list[_Mean] = []  # whole segments that may still turn out to be in the valley
        self.valley = _Mean()
        self.start: int | None = None  # the number of the valley's first segment
        self.end: int | None = None  # the number of its last segment, so far
        self.threshold: float | None = None
        self.over = False

    def update(self, model: nn.Module) -> None:
        if self.over:
            return
        self.segment.add([parameter.detach() for parameter in model.parameters()], 1)
        for buffer, value in zip(self.network.buffers(), model.buffers(), strict=True):
            buffer.copy_(value)

    def validated(self, loss: float) -> None:
        """Closes a segment; `loss` is that of the network as it is now, on held-out images."""
        if self.over or not self.segment.count:
            return
        self.losses.append(loss)
        self.pending.append(self.segment)
        self.segment = _Mean()
        if self.threshold is None:
            self._seek_start()
        else:
            self._judge(len(self.losses) - 1, self.pending.pop())

    @torch.no_grad()
    def model(self) -> nn.Module:
        mean = self.valley
        if self.start is None:  # the loss never converged
            mean = _Mean()
            for segment in [*self.pending, self.segment]:
                mean.add(segment.values, segment.count)
        for parameter, value in zip(self.network.parameters(), mean.values, strict=True):
            parameter.copy_(value)
        return self.network

    def state_dict(self) -> dict[str, Any]:
        means = [self.segment, self.valley, *self.pending]
        return {
            "losses": self.losses,
            "means": [(mean.count, mean.values) for mean in means],
            "buffers": list(self.network.buffers()),
            "valley": (self.start, self.end, self.threshold, self.over),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = next(self.network.parameters()).device
        means = [_Mean(count, [value.to(device) for value in values]) for count, values in state["means"]]
        self.segment, self.valley, *self.pending = means
        self.losses = state["losses"]
        self.start, self.end, self.threshold, self.over = state["valley"]
        for buffer, value in zip(self.network.buffers(), state["buffers"], strict=True):
            buffer.copy_(value)

    def _seek_start(self) -> None:
        count = self.config.n_converge
        window, self.pending = self.losses[-count:], self.pending[-count:]
        if len(window) == count and window[0] == min(window):
            self.start = len(self.losses) - count
            self.threshold = (1 + self.config.ratio) * sum(window) / count
            segments, self.pending = self.pending, []
            for number, segment in enumerate(segments, self.start):
                self._judge(number, segment)

    def _judge(self, number: int, segment: _Mean) -> None:
        """Judges whether a segment is in the valley.

        A good one is, with the pending ones before it; n_tolerance bad ones in a row end the valley.
        """
        if self.over:
            return
        assert self.threshold is not None
        self.pending.append(segment)
        if self.losses[number] <= self.threshold:
            for each in self.pending:
                self.valley.add(each.values, each.count)
            self.pending, self.end = [], number
        elif len(self.pending) >= self.config.n_tolerance:
            self.over, self.pending = True, []


class _Mean:
    """A running mean of lists of tensors, each list with a weight."""

    def __init__(self, count: int = 0, values: list[torch.Tensor] | None = None) -> None:
        self.count, self.values = count, values or []

    @torch.no_grad()
    def add(self, values: list[torch.Tensor], count: int) -> None:
        if count == 0:
            return
        self.count += count
        if not self.values:
            self.values = [value.clone() for value in values]
            return
        for mean, value in zip(self.values, values, strict=True):
            mean.add_(value - mean, alpha=count / self.count)
