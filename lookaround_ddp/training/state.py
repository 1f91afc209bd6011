"""What a checkpoint holds of a run: the state beside the replicas, and the part of each file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.checkpoint import Part, State
from lookaround_ddp.config import Config, changed_keys
from lookaround_ddp.data import Dataset
from lookaround_ddp.errors import UserError
from lookaround_ddp.optim import Trajectory
from lookaround_ddp.training.replica import Replica

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


def check_resumable(config: Config, dataset: Dataset, state: State) -> None:
    """Raises UserError if the checkpoint of this state was made with other data or another config."""
    if state["classes"] != dataset.classes:
        raise UserError(
            f"the checkpoint in {config.out} has {state['classes']} classes, the data has {dataset.classes}: "
            f"train in another `out`"
        )
    if state.get("trained_on", dataset.trained_on) != dataset.trained_on:
        raise UserError(
            f"the checkpoint in {config.out} was trained on {state['trained_on']}, the data has {dataset.trained_on}: "
            f"put back what is missing, or train in another `out`"
        )
    made = state["config"]
    made = made | {"data": {"pipeline": "workers"} | made["data"]}  # older checkpoints say nothing of it
    made["data"].pop("on_corrupt", None)  # and this of what no longer matters
    changes = list(changed_keys(made, config.identity()))
    if changes:
        raise UserError(
            f"the checkpoint in {config.out} was made with another config ({'; '.join(changes)}): "
            f"change it back, or train in another `out`"
        )
