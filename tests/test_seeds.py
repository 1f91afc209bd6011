"""Draws are those of torch.manual_seed; no device is seeded but the one that draws."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch

from lookaround_ddp import seeds

CPU = torch.device("cpu")
KEY = (3, seeds.FORWARD, 1, 20, 0, 0)


def refuse(*_: Any) -> None:
    raise AssertionError("a stack trace was formatted")


def test_the_draws_are_those_of_manual_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that uses no GPU, where torch.manual_seed queues a seed for each with a stack trace."""
    torch.manual_seed(seeds.derive(*KEY))
    expected = torch.nn.functional.dropout(torch.ones(50)), torch.randperm(50), torch.randn(3)
    torch.manual_seed(0)
    monkeypatch.setattr(traceback, "format_stack", refuse)
    seeds.seed_torch(CPU, *KEY)
    drawn = torch.nn.functional.dropout(torch.ones(50)), torch.randperm(50), torch.randn(3)
    assert all(torch.equal(one, other) for one, other in zip(drawn, expected, strict=True))


@pytest.mark.parametrize(("device", "seeded"), [("cuda:0", 0), ("cuda:2", 2), ("cuda", 1)])
def test_of_several_gpus_one_is_seeded(monkeypatch: pytest.MonkeyPatch, device: str, seeded: int) -> None:
    """Generators of the CPU stand for those of three GPUs, of which the second is the current one."""
    generators = tuple(torch.Generator().manual_seed(number) for number in range(3))
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    seeds.seed_torch(torch.device(device), *KEY)
    expected = [0, 1, 2]
    expected[seeded] = seeds.derive(*KEY)
    assert [generator.initial_seed() for generator in generators] == expected
    assert torch.initial_seed() == seeds.derive(*KEY)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_manual_seed_makes_it_draw() -> None:
    torch.manual_seed(seeds.derive(*KEY))
    expected = torch.randn(50, device="cuda")
    torch.manual_seed(0)
    seeds.seed_torch(torch.device("cuda"), *KEY)
    assert torch.equal(torch.randn(50, device="cuda"), expected)
