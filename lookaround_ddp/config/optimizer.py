"""The section of a config on the base optimizer, and on what goes around it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lookaround_ddp.config.section import Section


class SamConfig(Section):
    rho: float = Field(0.05, gt=0)
    """Radius of the neighbourhood; 0.5 is usual for the adaptive form."""
    adaptive: bool = False
    """ASAM: the neighbourhood of a weight is proportional to its size."""
    eta: float = Field(0.01, ge=0)
    """ASAM's least size of a weight."""
    perturbation: Literal["local", "synchronized"] = "local"
    """Where several ranks train one replica: each climbs on its own images (m-sharpness), or all on the batch's."""


class LookaheadConfig(Section):
    k: int = Field(5, ge=1)
    """Updates of the fast weights between two of the slow ones."""
    alpha: float = Field(0.5, gt=0, le=1)
    """Share of the way to the fast weights that the slow ones go."""
    momentum: Literal["keep", "reset", "pullback"] = "keep"
    """What becomes of the optimizer's momentum when the fast weights go back to the slow ones."""


class OptimizerConfig(Section):
    name: str = "sgd"
    """Any name of timm's factory; sgd is without Nesterov's momentum unless `nesterov` is set."""
    lr: float = Field(0.1, gt=0)
    """The learning rate that the schedule begins with."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd, and of those of timm's optimizers that have one."""
    weight_decay: float = Field(5e-4, ge=0)
    """Coefficient of the weights in each update."""
    nesterov: bool = False
    """Nesterov's form of sgd's momentum."""
    no_decay: Literal["none", "norm_bias"] = "none"
    """norm_bias: no weight decay on biases and one-dimensional parameters."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """The learning rate of each layer is so many times that of the next one, as timm groups them: the head has `lr`."""
    clip_norm: float | None = Field(None, gt=0)
    """Clip the gradient's L2 norm to this."""
    sam: SamConfig | None = None
    """Sharpness-aware minimization; {} for its defaults."""
    lookahead: LookaheadConfig | None = None
    """Slow and fast weights; {} for its defaults."""
    options: dict[str, Any] = Field({})
    """Further arguments of the optimizer, such as betas."""
