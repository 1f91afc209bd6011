"""What a checkpoint holds of a run: the state beside the replicas, and the part of each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.checkpoint import Part
from lookaround_ddp.replica import Replica
from lookaround_ddp.trajectory import Trajectory

State = dict[str, Any]  # of a run, JSON-able: what a checkpoint holds beside the replicas
START: State = {"iteration": 0, "steps": 0, "distances": None, "seconds": 0.0, "scores": {}, "best": None}
SHARED_TRAJECTORY = "trajectory.pt"


class Corrected:
    """A replica with the correction that is on its way to it (average.delay)."""

    def __init__(self, replica: Replica, hosted: int, around: Lookaround) -> None:
        self.replica, self.hosted, self.corrections = replica, hosted, around.corrections

    def state_dict(self) -> State:
        return {**self.replica.state_dict(), "correction": self.corrections.of(self.hosted)}

    def load_state_dict(self, state: State) -> None:
        self.replica.load_state_dict(state)
        self.corrections.restore(self.hosted, state["correction"])


def parts(replicas: Sequence[Replica], trajectories: Sequence[Trajectory], around: Lookaround) -> Mapping[str, Part]:
    """File name -> what a checkpoint keeps in it, of what this rank holds."""
    named: dict[str, Part] = {
        f"replica-{replica.number}.pt": Corrected(replica, hosted, around) if around.delay else replica
        for hosted, replica in enumerate(replicas)
    }
    if len(trajectories) == 1 and not trajectories[0].own:
        return named | {SHARED_TRAJECTORY: trajectories[0]}
    own = {f"trajectory-{r.number}.pt": t for r, t in zip(replicas, trajectories, strict=False)}
    return named | own
