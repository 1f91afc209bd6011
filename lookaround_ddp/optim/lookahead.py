"""Lookahead: k steps forward, 1 step back (Zhang et al., arXiv 1907.08610, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from lookaround_ddp.averaging import preserved

MOMENTA = ("momentum_buffer", "exp_avg")  # what torch's and timm's optimizers call their first moment


class Lookahead:
    """Slow weights phi beside the fast weights theta that an optimizer moves.

    After every k-th step phi += alpha (theta - phi), and theta = phi. Like `Lookaround` it counts
    *attempted* steps and leaves the optimizer as it is: call `step` after each of the optimizer's.

    Args:
        optimizer: its parameters are the fast weights.
        k: steps of the fast weights between two of the slow ones.
        alpha: the share of the way that the slow weights go.
        momentum: what the optimizer's first moment becomes at that step: "keep" leaves it; "reset" makes it 0;
            "pullback" does to it what is done to the weights, m = alpha m + (1 - alpha) m_before.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        k: int = 5,
        alpha: float = 0.5,
        momentum: Literal["keep", "reset", "pullback"] = "keep",
    ) -> None:
        self.optimizer, self.k, self.alpha, self.momentum = optimizer, k, alpha, momentum
        self.fast: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Starts the slow weights anew, where the fast weights are now."""
        self.steps = 0
        self.slow = [parameter.detach().clone() for parameter in self.fast]
        self.moments: list[Tensor] = [moment.clone() for moment in self._momenta()]

    @torch.no_grad()
    def step(self) -> bool:
        """Counts a step of the optimizer; returns whether the slow weights moved."""
        self.steps += 1
        if self.steps % self.k:
            return False
        for slow, fast in zip(self.slow, self.fast, strict=True):
            slow.add_(fast - slow, alpha=self.alpha)
            fast.copy_(slow)
        moments = self._momenta()
        # Before its first step the optimizer had no moments; they count as 0.
        before = self.moments or [torch.zeros_like(moment) for moment in moments]
        if self.momentum == "reset":
            for moment in moments:
                moment.zero_()
        elif self.momentum == "pullback":
            for moment, earlier in zip(moments, before, strict=True):
                moment.mul_(self.alpha).add_(earlier, alpha=1 - self.alpha)
            self.moments = [moment.clone() for moment in moments]  # copies: the optimizer writes over its own
        return True

    @contextmanager
    def slow_weights(self) -> Iterator[None]:
        """Puts the slow weights into the parameters inside the block, and the fast ones back after it, bit for bit."""
        with preserved(self.fast):
            with torch.no_grad():
                for parameter, slow in zip(self.fast, self.slow, strict=True):
                    parameter.copy_(slow)
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "slow": self.slow, "moments": self.moments}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for slow, value in zip(self.slow, state["slow"], strict=True):
            slow.copy_(value)
        self.moments = [moment.to(self.fast[0].device) for moment in state["moments"]]

    def _momenta(self) -> list[Tensor]:
        """Returns the optimizer's first moments so far, in the order of its parameters; none for "keep"."""
        if self.momentum == "keep":
            return []
        states = [self.optimizer.state.get(parameter, {}) for parameter in self.fast]
        return [state[key] for state in states for key in MOMENTA if isinstance(state.get(key), Tensor)]
