"""A forked child of a rank that shares its weights' memory: it has the weights of when it was forked, for itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lookaround_ddp import Lookaround
from tests.support.ranks import run


def network() -> nn.Sequential:
    """Two dtypes, running statistics, and more than a page of memory."""
    return nn.Sequential(nn.Linear(50, 100), nn.BatchNorm1d(100), nn.Linear(100, 2, dtype=torch.float64))


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in averaged_of(model):
            tensor.fill_(value)


def averaged_of(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.is_floating_point()]


def values(model: nn.Module) -> list[float]:
    return sorted({value for tensor in averaged_of(model) for value in tensor.unique().tolist()})


def in_child(before: Callable[[], None], model: nn.Module) -> str:
    """What a forked child sees after the parent has done something; the child then writes 99 everywhere."""
    go, seen = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(go[0], 1)
            os.write(seen[1], repr(values(model)).encode())
            fill(model, 99.0)
        finally:
            os._exit(0)
    before()
    os.write(go[1], b"x")
    text = os.read(seen[0], 1000).decode()
    os.waitpid(child, 0)
    for end in (*go, *seen):
        os.close(end)
    return text


class Harmful(Dataset[int]):
    """Writes into the model, in a loader's worker."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        fill(self.model, 99.0)
        return index


def worker(rank: int, ranks: int) -> dict[str, Any]:
    model = network()
    around = Lookaround(model, k=1)
    fill(model, 1.0 + rank)
    around.step()
    results: dict[str, Any] = {"shared": around._average.rows._memory is not None}

    def go_on() -> None:
        fill(model, 5.0 + rank)
        dist.barrier()

    results["child"] = in_child(go_on, model)
    dist.barrier()
    results["parent"] = values(model)
    around.average()
    results["mean afterwards"] = values(model)

    loader = DataLoader(Harmful(model), num_workers=2, multiprocessing_context="fork")
    results["loaded"] = sorted(int(index) for index in loader)
    dist.barrier()
    results["parent of the loader"] = values(model)

    fill(model, 2.0 * rank)
    delayed = network()
    late = Lookaround(delayed, k=2, delay=1)
    fill(delayed, 2.0 * rank)
    for _ in range(2):
        late.step()
    results["child of a delay"] = in_child(dist.barrier, delayed)
    late.step()
    results["mean of the delay"] = values(delayed)
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run(worker, 2)


def test_a_child_has_the_weights_of_when_it_was_forked(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["shared"]
        assert rank["child"] == "[1.5]"


def test_what_a_child_writes_is_its_own(ranks: list[dict[str, Any]]) -> None:
    assert [rank["parent"] for rank in ranks] == [[5.0], [6.0]]


def test_the_parents_go_on_averaging(ranks: list[dict[str, Any]]) -> None:
    assert [rank["mean afterwards"] for rank in ranks] == [[5.5], [5.5]]


def test_what_a_loaders_worker_writes_is_its_own(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["loaded"] == [0, 1, 2, 3]
        assert rank["parent of the loader"] == [5.5]


def test_a_fork_while_a_mean_is_on_its_way_changes_nothing(ranks: list[dict[str, Any]]) -> None:
    """Weights of 0 and 2; running statistics were averaged at once, parameters a step later."""
    assert [rank["child of a delay"] for rank in ranks] == ["[0.0, 1.0]", "[1.0, 2.0]"]
    assert [rank["mean of the delay"] for rank in ranks] == [[1.0], [1.0]]
