"""Under Lightning replicas train on their own, on all of the data, and are averaged as Algorithm 1 says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from tests.support import ranks as pool
from tests.support.replicas import BATCH, EPOCHS, IMAGES, LABELS, RATE, K, as_under_torchrun, flat, means, network

pytest.importorskip("lightning", reason="lightning is not installed: the extra `lightning`")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lookaround_ddp.integrations.lightning import LookaroundCallback, ReplicaStrategy

DATA = TensorDataset(IMAGES, LABELS)


class Regression(LightningModule):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.inner, self.seen, self.validated = network(rank), [], []

    def training_step(self, batch: Any, number: int) -> Tensor:
        images, labels = batch
        self.seen.append(images)
        return nn.functional.mse_loss(self.inner(images + 0.5 * self.global_rank), labels)

    def validation_step(self, batch: Any, number: int) -> None:
        self.validated.append(flat(self.inner))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Counted(LookaroundCallback):
    """Tells how many steps there were."""

    steps = 0

    def on_train_end(self, *arguments: Any) -> None:
        super().on_train_end(*arguments)
        Counted.steps = self.around.steps


def trainer(folder: str, ranks: int, strategy: Any, *callbacks: Any, **options: Any) -> Trainer:
    options = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, **options}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        callbacks=[Counted(k=K), *callbacks],
        default_root_dir=folder,
        **options,
        **quiet,
    )


def refusal(trainer: Trainer, rank: int, loader: Any) -> str:
    try:
        trainer.fit(Regression(rank), loader)
    except ValueError as error:
        return str(error)
    return ""


def worker(rank: int, ranks: int, folder: str) -> dict[str, Any]:
    as_under_torchrun(rank, ranks)
    warnings.simplefilter("ignore")
    loader = DataLoader(DATA, BATCH)
    found: dict[str, Any] = {"ddp": refusal(trainer(folder, ranks, "ddp"), rank, loader)}
    part = DataLoader(DATA, BATCH, sampler=DistributedSampler(DATA, ranks, rank))
    found["sampler"] = refusal(trainer(folder, ranks, ReplicaStrategy(), enable_checkpointing=False), rank, part)

    saved = ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
    module = Regression(rank)
    in_order = {"use_distributed_sampler": False}
    trainer(folder, ranks, ReplicaStrategy(), saved, **in_order).fit(module, loader, DataLoader(DATA, 20))
    found |= {"batches": len(module.seen), "validated": torch.stack(module.validated), "end": flat(module.inner)}

    went_on = Regression(rank)  # from the middle of a round
    trainer(folder, ranks, ReplicaStrategy()).fit(
        went_on, loader, ckpt_path=f"{folder}/step=4.ckpt", weights_only=False
    )
    found |= {"went on": torch.cat(went_on.seen), "steps": Counted.steps}

    options = {"max_epochs": 1, "accumulate_grad_batches": 3}
    trainer(folder, ranks, ReplicaStrategy(), **options).fit(Regression(rank), loader)
    return {**found, "accumulated": Counted.steps}


def test_lightning(tmp_path: Path) -> None:
    everyone = pool.run(worker, 2, str(tmp_path))
    right = means(2)
    for found in everyone:
        assert found["batches"] == 8  # all of the data, in each of two epochs
        np.testing.assert_allclose(found["validated"].numpy(), right[[3, 7]], atol=1e-6)
        np.testing.assert_allclose(found["end"].numpy(), right[7], atol=1e-6)
        assert "DDPStrategy averages gradients" in found["ddp"]
        assert "strategy=ReplicaStrategy()" in found["ddp"]
        assert "gives each rank a share of the data" in found["sampler"]
        assert sorted(found["went on"].tolist()) == sorted(IMAGES.tolist())
        assert found["steps"] == 8
        assert found["accumulated"] == 2  # of 4 batches, the last one alone
    for same in ("end", "went on"):
        assert torch.equal(everyone[0][same], everyone[1][same])
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=False)["state_dict"]
    np.testing.assert_allclose(torch.cat([each.flatten() for each in saved.values()]).numpy(), right[3], atol=1e-6)
