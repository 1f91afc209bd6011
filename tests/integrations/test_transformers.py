"""Under Hugging Face's Trainer replicas train on their own, on all of the data, averaged as Algorithm 1 says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.support import ranks as pool
from tests.support.replicas import BATCH, EPOCHS, LABELS, RATE, K, as_under_torchrun, flat, images_of, means, network

pytest.importorskip("transformers", reason="transformers is not installed: the extra `transformers`")
pytest.importorskip("accelerate", reason="accelerate is not installed: the extra `transformers`")

from transformers import Trainer, TrainingArguments

from lookaround_ddp.integrations.transformers import attach


class Regression(nn.Module):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.inner, self.seen, self.evaluated = network(rank), 0, []

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.seen += len(images)
        else:
            self.evaluated.append(flat(self.inner))
        logits = self.inner(images)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


def worker(rank: int, ranks: int, folder: str) -> dict[str, Any]:
    as_under_torchrun(rank, ranks)
    options: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no"}
    arguments = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        optim="sgd",
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        train_sampling_strategy="sequential",
        eval_strategy="epoch",
        save_strategy="epoch",
        **options,
    )
    rows = [{"images": x, "labels": y} for x, y in zip(images_of(rank), LABELS, strict=True)]
    model = Regression(rank)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows[:2])
    trainer.model_wrapped = DistributedDataParallel(model)
    refused = []
    try:
        attach(trainer)
    except ValueError as error:
        refused.append(str(error))
    trainer.model_wrapped = model
    attach(trainer, k=K)
    trainer.train()
    found = {"seen": model.seen, "evaluated": torch.stack(model.evaluated), "end": flat(model.inner)}
    again = Trainer(Regression(rank), arguments, train_dataset=rows, eval_dataset=rows[:2])
    callback, steps = attach(again, k=K), []
    callback.on_train_end = lambda *_, **__: steps.append(callback.around.steps)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-4")
    return {**found, "refused": refused, "steps": steps, "went on": again.model.seen}


def test_transformers(tmp_path: Path) -> None:
    everyone = pool.run(worker, 2, str(tmp_path))
    right = means(2)
    for found in everyone:
        assert found["seen"] == 20 * EPOCHS  # all of the data
        assert len(found["evaluated"]) >= 2
        for mean in found["evaluated"]:
            assert min(np.abs(mean.numpy() - right[step]).max() for step in (3, 7)) < 1e-6
        np.testing.assert_allclose(found["end"].numpy(), right[7], atol=1e-6)
        assert found["refused"] == ["the trainer has wrapped its model already: attach Lookaround before it trains"]
        assert found["steps"] == [8]
        assert found["went on"] == 20
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    mean = np.concatenate([saved["inner.weight"].flatten().numpy(), saved["inner.bias"].numpy()])
    np.testing.assert_allclose(mean, right[3], atol=1e-6)
