"""Trainings to hold `Lookaround` against Algorithm 1 with: networks, optimizers, and when their averages fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(nn.Module):
    """Parameters that an average could get wrong: tied, frozen, 0-dim, unused; and a buffer of one's own."""

    inputs = (6, 4)

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.scale = nn.Parameter(1 + torch.rand(()))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("vector", torch.randn(4))  # changes in each forward pass, as spectral norm's do

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.vector.copy_(F.normalize(self.encode.weight @ self.vector + x.sum(0), dim=0))
        return self.scale * self.decode(torch.tanh(self.encode(x))) + self.frozen * self.vector


class Conv(nn.Module):
    """A channels_last convolution, and batch-norm with its running statistics and integer counter."""

    inputs = (6, 3, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def groups(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return torch.optim.SGD(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "lr": 0.2, "momentum": 0.0}],
        lr=0.03,
        momentum=0.9,
    )


@dataclass(frozen=True)
class Case:
    """A training; `averages` are the iterations that an average step follows, worked out by hand."""

    averages: tuple[int, ...]
    model: type[nn.Module] = Dense
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    k: int | Callable[[int], int] | None = 3
    iterations: int = 8
    start: int = 0
    buffers: tuple[str, ...] = ()
    at_end: bool = False  # an average step after the last iteration, asked for
    skipped: tuple[tuple[int, int], ...] = ()  # (replica, iteration) whose optimizer step a GradScaler skips
    resumed_after: int = 0  # the iteration after which another Lookaround goes on with the saved count


def shorter(steps: int) -> int:
    """4 steps in a round that begins before step 5, then 2."""
    return 4 if steps < 5 else 2


CASES = {
    "SGD with momentum, k does not divide the run": Case((3, 6)),
    "the last iteration averages": Case((3, 6, 9), iterations=9),
    "AdamW": Case((3, 6), optimizer=adamw),
    "AdamW, k = 1": Case((1, 2, 3, 4), optimizer=adamw, k=1, iterations=4),
    "k = 1": Case((1, 2, 3, 4, 5, 6, 7, 8), k=1),
    "k beyond the run": Case((), k=50),
    "k beyond the run, averaged at the end": Case((8,), k=50, at_end=True),
    "k = None": Case((), k=None),
    "param groups": Case((3, 6), optimizer=groups),
    "channels_last and batch-norm": Case((3, 6), model=Conv),
    "channels_last and batch-norm, AdamW, averaged at the end": Case((5, 8), Conv, adamw, k=5, at_end=True),
    "a named buffer": Case((3, 6, 9), iterations=9, buffers=("vector",)),
    "start": Case((5, 8), start=2, iterations=9),
    "start = k": Case((4, 6, 8), start=2, k=2),
    "a scaler skips steps of some replicas": Case((3, 6), skipped=((0, 2), (1, 3), (1, 4))),
    "resumed mid-round": Case((3, 6), resumed_after=4),
    "resumed after a round": Case((3, 6), resumed_after=3),
    "k over time": Case((4, 8, 10, 12), k=shorter, iterations=13),
    "k over time, resumed where it has just changed": Case(
        (4, 8, 10), Conv, adamw, k=shorter, iterations=11, resumed_after=9
    ),
    "k over time after a start": Case((5, 7, 9, 10), k=shorter, start=1, iterations=10, resumed_after=6, at_end=True),
}


def build(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return case.model()


def loss_of(model: nn.Module, replica: int, iteration: int) -> Tensor:
    """On the data of this replica and iteration."""
    generator = torch.Generator().manual_seed(1000 * replica + iteration)
    inputs = torch.randn(model.inputs, generator=generator)
    return F.mse_loss(model(inputs), torch.randn(6, 4, generator=generator))


def square_loss(model: nn.Module, replica: int, step: int) -> Tensor:
    """The mean square of the outputs, on the inputs of this replica and step."""
    generator = torch.Generator().manual_seed(1000 * replica + step)
    return model(torch.randn(model.inputs, generator=generator)).square().mean()


class Weights(nn.Module):
    """Two parameters without a network around them, whose gradients a test sets by hand."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), value))
        self.v = nn.Parameter(torch.tensor(value))
        self.register_buffer("running_mean", torch.full((2,), value))
        self.register_buffer("vector", torch.full((2,), value))
        self.register_buffer("count", torch.tensor(round(value)))


def fill(model: Weights, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
