"""Flat storage: where the weights of ranks that share memory lie, and what may be done to them between rounds."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from tests.support.ranks import run

VALUES = 1000 * 1000  # of the large layer


def network(rank: int) -> nn.Sequential:
    """Every weight is 1 + rank, so that a mean of two is 1.5; a convolution is channels_last."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(1000, 1000, bias=False))
    model[0].to(memory_format=torch.channels_last)
    fill(model, 1.0 + rank)
    return model


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in averaged_of(model):
            tensor.fill_(value)


def averaged_of(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict(keep_vars=True).values() if tensor.is_floating_point()]


def kept(model: nn.Sequential) -> tuple[Any, ...]:
    return model[2].weight.data, model[0].weight.detach().numpy()


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def converted(model: nn.Module) -> None:
    model.double().float()


def doubled(model: nn.Module) -> None:
    model.double()


def replaced(model: nn.Module) -> None:
    model[2].weight = nn.Parameter(model[2].weight.detach().clone())


CHANGES: list[Callable[[Any], None]] = [assigned, converted, replaced, doubled]


def addresses(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in averaged_of(model)]


def worker(rank: int, ranks: int) -> dict[str, Any]:
    model = network(rank)
    around = Lookaround(model, k=1)
    objects, strides = [id(t) for t in averaged_of(model)], [t.stride() for t in averaged_of(model)]
    results: dict[str, Any] = {}
    fill(model, 1.0 + rank)
    around.average()
    homes = addresses(model)
    results["objects"] = objects == [id(t) for t in averaged_of(model)]
    results["strides"] = strides == [t.stride() for t in averaged_of(model)]
    results["span"] = max(homes) - min(homes)
    results["aligned"] = all(address % 64 == 0 for address in homes)
    buffer = io.BytesIO()
    torch.save(model[1].weight, buffer)
    results["saved"] = buffer.tell()
    twin = copy.deepcopy(model)
    fill(twin, 7.0)
    results["after a deepcopy"] = model[2].weight[0, 0].item()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ValueError, match=r"neither copied nor pickled: .* Copy the models .* on all ranks"):
            copied(around)
    fill(model, 1.0 + rank)
    around.average()
    results["stayed"] = homes == addresses(model)

    loss = model[2].weight.square().sum()
    around.average()
    try:
        loss.backward()
    except RuntimeError as error:
        results["stale"] = str(error)

    for change in CHANGES:
        fill(model, 1.0 + rank)
        change(model)
        left = homes != addresses(model)
        around.average()
        weights = {tensor.unique().item() for tensor in averaged_of(model)}
        results[change.__name__] = left, weights, homes == addresses(model), model[2].weight.dtype

    seen = network(rank)
    views = kept(seen)
    around = Lookaround(seen, k=1)
    fill(seen, 1.0 + rank)
    around.average()
    results["views"] = [{float(view.flat[0])} if hasattr(view, "flat") else {view[0, 0].item()} for view in views]
    results["their tensors"] = [seen[2].weight[0, 0].item(), seen[0].weight[0, 0, 0, 0].item()]

    late = network(rank)
    around_late = Lookaround(late, k=2, delay=1)
    for _ in range(2):
        around_late.step()
    torch.save(late, io.BytesIO())
    results["copied while a mean is on its way"] = copy.deepcopy(late)[2].weight[0, 0].item()
    around_late.step()

    if rank == 1:
        seen.double()
    try:
        around.average()
    except ValueError as error:
        results["one converts"] = str(error)
    results["untouched"] = seen[2].weight[0, 0].item()
    return results


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return run(worker, 2)


def test_the_tensors_of_a_replica_lie_in_one_piece_and_stay_what_they_were(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["objects"]
        assert results["strides"]
        assert results["aligned"]
        # 108 weights in 432 bytes, rounded up to 448; three of 4; the large layer, which fills whole lines; the running
        # mean, and 64 bytes after it the running variance
        assert results["span"] == 448 + 3 * 64 + 4 * VALUES + 64
        assert results["stayed"]


def test_what_is_saved_or_copied_drags_nothing_along(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["saved"] < 4 * VALUES / 100
        assert results["after a deepcopy"] == 1.5
        assert results["copied while a mean is on its way"] == 1.0  # where all begin: rank 0's weights


def test_autograd_knows_that_weights_were_replaced(on_ranks: list[dict[str, Any]]) -> None:
    """A backward pass from before would multiply by the new ones."""
    for results in on_ranks:
        assert "modified by an inplace operation" in results["stale"]


@pytest.mark.parametrize("change", [change.__name__ for change in CHANGES])
def test_what_leaves_it_is_averaged_and_comes_back(on_ranks: list[dict[str, Any]], change: str) -> None:
    """Those of another dtype need a new storage; the others come back to their old place."""
    dtype = torch.float64 if change == "doubled" else torch.float32
    for results in on_ranks:
        left, weights, back, now = results[change]
        assert left
        assert weights == {1.5}
        assert now == dtype
        assert back == (change != "doubled")


def test_views_that_others_keep_see_the_mean(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["views"] == [{1.5}, {1.5}]
        assert results["their tensors"] == [1.5, 1.5]


def test_a_dtype_that_one_rank_has_alone_is_refused_on_all(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["one converts"].startswith("replica 1 has parameters or buffers of other dtypes or shapes, ")
        assert results["untouched"] == 1.5
