"""With accelerate replicas train on their own, on all of the data, and are averaged as Algorithm 1 says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.support import ranks as pool
from tests.support.replicas import BATCH, EPOCHS, LABELS, RATE, K, as_under_torchrun, flat, images_of, means, network

pytest.importorskip("accelerate", reason="accelerate is not installed: the extra `accelerate`")

from accelerate import Accelerator

from lookaround_ddp.integrations.accelerate import prepare


def worker(rank: int, ranks: int) -> dict[str, Any]:
    as_under_torchrun(rank, ranks)
    accelerator = Accelerator(cpu=True)
    bare = network(rank), DataLoader(TensorDataset(images_of(rank), LABELS), BATCH)
    wrapped, loader = accelerator.prepare(*bare)
    sgd = torch.optim.SGD(bare[0].parameters(), lr=RATE)
    refused = []
    for model, given in ((wrapped, bare[1]), (bare[0], bare[1]), (network(rank), loader)):
        try:
            prepare(accelerator, model, sgd, given)
        except ValueError as error:
            refused.append(str(error))

    model, batches = network(rank), 0
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    around, model, optimizer, loader = prepare(accelerator, model, sgd, bare[1], k=K)
    for _ in range(EPOCHS):
        for images, labels in loader:
            accelerator.backward(nn.functional.mse_loss(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
            around.step()
            batches += 1
    with around.averaged() as mean:
        found = flat(mean)
    return {"refused": refused, "batches": batches, "mean": found, "ranks": accelerator.num_processes}


def test_accelerate() -> None:
    for found in pool.run(worker, 2):
        assert found["ranks"] == 2
        assert found["batches"] == 8  # all of the data, in each of two epochs
        np.testing.assert_allclose(found["mean"].numpy(), means(2)[7], atol=1e-6)
        model, inner, loader = found["refused"]
        assert model == inner
        assert model.startswith("accelerator.prepare wrapped the model in DDP, which averages gradients")
        assert loader.startswith("accelerator.prepare gives each process a share of the loader's data")
