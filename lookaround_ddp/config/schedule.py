"""The section of a config on the learning rate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lookaround_ddp.config.section import Epochs, ListOf, Section

IterationCount = Annotated[int, Field(ge=0, le=10**12)]
# (iteration, length): from that one on, the schedule is of a run of this length
Span = Annotated[tuple[IterationCount, IterationCount], Field(strict=False)]


class ScheduleConfig(Section):
    name: Literal["constant", "multistep", "cosine"] = "cosine"
    """How the learning rate falls."""
    warmup_epochs: Epochs = 0
    """Linear, per iteration."""
    per: Literal["epoch", "iteration"] = "iteration"
    """How often the cosine moves."""
    milestones: ListOf[Epochs] = ()
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: float = Field(0.2, gt=0)
    """multistep: see milestones."""
    min_lr: float = Field(0.0, ge=0)
    """cosine: the rate at the end."""
    cycles: int = Field(1, ge=1)
    """Cosine restarts: the run is divided into so many."""
    extend: Literal["hold", "stretch"] | None = None
    """Makes a run that has begun longer: give the same command with more `epochs` (or `iterations`), and what the
    learning rate is to do. hold: it goes to the old end as it would have, and stays as it is there. stretch: it is from
    now on that of a run of the new length, and a cosine jumps up to where that one stands. For the rates constant and
    multistep the two are the same. Without effect on a run that has the length already."""
    spans: ListOf[Span] = ()
    """cosine: pairs of an iteration, and the iterations that the cosine goes over from that one on. `extend` leaves
    them, so that a run's config.yaml tells its rates; by default the run's length from the start on."""
