"""Lookaround for Lightning: each device trains a replica of the module.

    trainer = Trainer(devices=3, strategy=ReplicaStrategy(), callbacks=[LookaroundCallback(k=5)])

Validation sees the mean model, and checkpoints hold it; a training that goes on from one begins there. Each rank goes
over all of the data. For an augmentation, or a seed, of its own it has `module.global_rank`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.integrations.replica_strategy import ReplicaStrategy

__all__ = ["LookaroundCallback", "ReplicaStrategy"]


class LookaroundCallback(Callback):
    """Averages the replicas after every k steps of the optimizer, and when the training ends.

    Args:
        k, options: those of `Lookaround`, which is `around` while the training runs.

    Raises:
        ValueError: when the training starts: a strategy averages gradients, or a sampler gives each rank a share.
    """

    def __init__(self, k: Any = 5, **options: Any) -> None:
        self.k, self.options = k, options
        self.around: Any = None
        self._of_checkpoint, self._lent = dict[str, Any](), ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if trainer.world_size > 1 and not isinstance(strategy, ReplicaStrategy):
            raise ValueError(
                f"{type(strategy).__name__} averages gradients, which keeps all replicas alike: give "
                "Trainer(strategy=ReplicaStrategy()), of lookaround_ddp.integrations.lightning"
            )
        self.around = Lookaround(pl_module, self.k, **self.options)
        if self._of_checkpoint:
            self.around.load_state_dict(self._of_checkpoint)
        if isinstance(strategy, ReplicaStrategy):
            strategy.around = self.around

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for loader in tree_leaves(trainer.train_dataloader):
            if getattr(getattr(loader, "sampler", None), "num_replicas", 1) > 1:
                raise ValueError("the loader's sampler gives each rank a share of the data: leave out the sampler")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if (batch[-1] + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            self.around.step()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.around is not None:
            self._lent.enter_context(self.around.averaged())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lent.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.around.average()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.around = None  # its ranks may leave now
        if isinstance(trainer.strategy, ReplicaStrategy):
            trainer.strategy.around = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.around is None else self.around.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._of_checkpoint = dict(state_dict)
