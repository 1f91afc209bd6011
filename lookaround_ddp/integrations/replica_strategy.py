"""Lightning's processes, each with a replica of its own."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lookaround_ddp.averaging import Lookaround


class ReplicaStrategy(DDPStrategy):
    """Lightning's processes and collectives, without DDP's average of gradients, and all of the data for each rank."""

    around: Lookaround | None = None  # the callback's

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": 1, "rank": 0}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the mean model's weights, for a checkpoint; collective, as Lightning calls it."""
        if self.around is None:
            return super().lightning_module_state_dict()
        with self.around.averaged():
            return {name: value.clone() for name, value in super().lightning_module_state_dict().items()}
