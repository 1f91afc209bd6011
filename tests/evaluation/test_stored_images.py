"""Images in memory are evaluated as they are stored: the pixels that PIL would make of them, and so the scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp.config.schema import Config, DataConfig, EvaluateConfig
from lookaround_ddp.data.batches import EvaluationBatches
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.images import Arrays, Subset
from lookaround_ddp.data.transforms import evaluation_transform
from lookaround_ddp.distributed.world import World
from lookaround_ddp.evaluation.evaluator import make_evaluator

ALONE = World(0, 1, 1, torch.device("cpu"), "none")


class Gradient(nn.Module):
    """Logits that depend on every pixel's place."""

    def forward(self, images: Tensor) -> Tensor:
        torch.manual_seed(0)
        return images.flatten(1) @ torch.randn(images[0].numel(), 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_are_shown_as_they_are_stored(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PIL, and with the same bits as through it: of a whole split, of a part, and of a part of that."""
    shape = (23, 5, 5) if channels == 1 else (23, 5, 5, 3)
    whole = Arrays(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), [i % 10 for i in range(23)])
    whole.pixels.flags.writeable = False  # as those of idx files are
    part = Subset(whole, [20, 3, 3, 7, 0, 22, 11])
    data = replace(open_dataset(DataConfig(), seed=0), size=5, native=5, channels=channels)
    data = replace(data, mean=(0.5,) * channels, std=(0.3,) * channels)
    config, opened, image = Config(evaluate=EvaluateConfig(batch_size=4)), [], Arrays.image
    monkeypatch.setattr(Arrays, "image", lambda split, index: opened.append(index) or image(split, index))
    for split in (whole, part, Subset(part, [6, 0, 2])):
        opened.clear()
        evaluator = make_evaluator(config, data, split, ALONE)
        score, found = evaluator.shared(Gradient()), [evaluator.batches[i] for i in range(len(evaluator.batches))]
        assert opened == []
        evaluator.batches = EvaluationBatches(split, evaluation_transform(data), 4)
        assert evaluator.shared(Gradient()) == score
        assert len(opened) == len(split)
        for number, batch in enumerate(found):
            expected = evaluator.batches[number]
            assert torch.equal(batch.images, expected.images)
            assert batch.images.stride() == expected.images.stride()
            assert torch.equal(batch.labels, expected.labels)
    make_evaluator(config, replace(data, size=6), whole, ALONE).batches[0]
    assert opened[-4:] == [0, 1, 2, 3]  # these are resized
