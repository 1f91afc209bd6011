"""Averages along time of one network's weights: SWA, EMA, SWAD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lookaround_ddp.config import TrajectoryConfig
from lookaround_ddp.optim.swad import Swad

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class Average(Protocol):
    """A kind of average; its state is of tensors and numbers, and moving on from it changes no bit."""

    def update(self, model: nn.Module) -> None:
        """Takes in the weights as they are now."""

    def model(self) -> nn.Module:
        """Returns the network with the average's weights; some must have been taken in before."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Averaged:
    """A running mean that torch keeps: SWA's or an exponential one."""

    def __init__(self, average: AveragedModel) -> None:
        self.average = average

    def update(self, model: nn.Module) -> None:
        self.average.update_parameters(model)

    def model(self) -> nn.Module:
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)


def swa(config: TrajectoryConfig, model: nn.Module) -> Averaged:
    """Makes the equal mean of snapshots (Izmailov et al., arXiv 1803.05407, Algorithm 1)."""
    return Averaged(AveragedModel(model))


def ema(config: TrajectoryConfig, model: nn.Module) -> Averaged:
    """Makes the exponential mean, average += (1 - decay) (weights - average), of parameters and running statistics.

    It starts at the first weights that it takes in. Integers, such as counts of batches, are copied, not averaged.
    """
    lerp = get_ema_multi_avg_fn(config.decay)

    def update(averages: Tensors, values: Tensors, count: torch.Tensor | int) -> None:  # all tensors have one dtype
        if averages[0].is_floating_point():
            lerp(averages, values, count)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    return Averaged(AveragedModel(model, multi_avg_fn=update, use_buffers=True))


AVERAGES: dict[str, Callable[[TrajectoryConfig, nn.Module], Average]] = {"swa": swa, "swad": Swad, "ema": ema}


class Trajectory:
    """When an average along time takes the network's weights in.

    Every `period` iterations after the start something is due: a snapshot, or for SWAD, which takes in every
    iteration, a validation. Where the weights are only worth it at the end of a round, it waits for that.

    Args:
        own: the network is one replica of several that are never averaged; otherwise all ranks see the same.
    """

    def __init__(self, config: TrajectoryConfig, model: nn.Module, per_epoch: int, own: bool = False) -> None:
        self.own = own
        self.average = AVERAGES[config.name](config, model)
        self.start, self.period = round(config.start * per_epoch), config.period(per_epoch)
        self.last = 0  # the last iteration that it was shown
        self.passed = 0  # the periods that were completed
        self.updates = 0

    def observe(self, model: nn.Module, iteration: int) -> bool:
        """Takes in the weights after this iteration if they are due, once; returns whether a period was completed."""
        if iteration == self.last:
            return False
        self.last = iteration
        due = iteration > self.start and (iteration - self.start) // self.period > self.passed
        if due:
            self.passed = (iteration - self.start) // self.period
        if due or (isinstance(self.average, Swad) and iteration > self.start):
            self.average.update(model)
            self.updates += 1
        return due

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "passed": self.passed, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.passed, self.updates = state["passed"], state["updates"]
