"""The section of a config on the average step: when it comes, and what it does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lookaround_ddp.config.rounds import K, Length
from lookaround_ddp.config.section import Epochs, ListOf, Section


class OuterConfig(Section):
    lr: float = Field(0.7, gt=0)
    """Share of the movement that is taken, before momentum."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the movement before that is kept."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""


class NodesConfig(Section):
    size: int = Field(ge=2)
    """Replicas of a node: the first so many are the first node's, and so on. Ranks are numbered host by host."""
    k: Length
    """Iterations between averages over all, a multiple of those of a round; or epoch, "10 epochs"."""


class AverageConfig(Section):
    k: K = 5
    """Iterations in a round; or epoch, "10 epochs", never. Or a list of (epoch, k): the rounds that begin from this
    epoch of the run on have this k; the first entry is of epoch 0. A round that has begun keeps its k."""
    start: Epochs = 0
    """Epochs before the first round."""
    before_start: Literal["replicas", "single", "single_in_turn"] = "replicas"
    """What trains before it: the replicas, each for itself; or one network, from which all replicas then start
    (DART): on every augmentation in an iteration (single), or on one after the other (single_in_turn)."""
    optimizer_state: Literal["local", "average", "reset"] = "local"
    """What an average step does to momentum and the like: it stays with its replica, is averaged, or begins anew."""
    exact: bool = True
    """Sum in fp64 and in the replicas' order: the same bits on any number of processes. false: one fp32 all-reduce."""
    hide: bool | None = Field(None, exclude=True)
    """Without effect; older configs have it. The average step is waited for, or comes later (`delay`)."""
    delay: int = Field(0, ge=0)
    """Another algorithm, for slow networks: the mean arrives so many iterations later, as a correction of weights that
    have trained on; less than k."""
    outer: OuterConfig | None = None
    """Another algorithm (DiLoCo; {} for its settings): when a round ends, an optimizer takes the movement of the mean's
    parameters as a gradient, and the replicas go on from where it moves them. What is evaluated within a round, and
    saved when the run ends within one, is the replicas' plain mean. lr 1 and momentum 0 is Lookaround."""
    nodes: NodesConfig | None = None
    """Another algorithm: rounds end with an average inside each node, and every so many with one over all instead."""
    buffers: ListOf[str] = ()
    """Names of buffers to average beside the norm layers' running statistics."""
    norm_momentum: Literal["compensated", "own"] = "compensated"
    """compensated: batch-norm's momentum m becomes 1 - (1 - m)^d, as if the d replicas (where there are nodes, those of
    a node) shared the statistics."""
