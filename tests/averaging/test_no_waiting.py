"""On a GPU the host does not wait for an average: no operation reads a value, and what is wrong is told later.

Here the CPU plays the GPU, whose replicas are hosted by one rank, or averaged by collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from lookaround_ddp.averaging import shared_memory
from tests.support.ranks import run, same_bits
from tests.support.waits import waits

K = 3


def network(value: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float64))
    fill(model, value)
    return model


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def weights(models: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor.detach().clone() for model in models for tensor in [*model.parameters(), model[1].running_mean]]


def started(replicas: Sequence[int], **options: Any) -> tuple[Lookaround, list[nn.Module]]:
    models = [network(0.0) for _ in replicas]
    around = Lookaround(models, K, measure=True, **options)
    around._average.later = True
    for replica, model in zip(replicas, models, strict=True):
        fill(model, float(replica))
    return around, models


def worker(rank: int, ranks: int) -> dict[str, Any]:
    shared_memory._machine = lambda: None  # so that the ranks share no memory
    return scenarios(range(rank, rank + 1))


def scenarios(replicas: Sequence[int]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for delay in (0, 1):
        around, models = started(replicas, delay=delay)
        with waits() as found:
            for _ in range(K + delay):
                around.step()
        around.look()
        results[f"read, {delay}"] = found
        results[f"means, {delay}"] = weights(models)
        for how in ("inf", "double"):
            results[f"{how}, {delay}"] = spoiled(replicas, how, delay)
    return results


def spoiled(replicas: Sequence[int], how: str, delay: int) -> list[Any]:
    """Replica 1 is bad at step 3: what the steps raise, and what it is afterwards."""
    around, models = started(replicas, delay=delay)
    if 1 in replicas:
        bad = models[list(replicas).index(1)]
        if how == "inf":
            bad[0].bias.data[1] = torch.inf
        else:
            bad.double()
    before, errors = weights(models), []
    for step in range(1, 2 * K + 1):
        try:
            around.step()
        except (FloatingPointError, ValueError) as error:
            errors.append(f"{step}: {error}")
            break
    same = all(same_bits(now, then) for now, then in zip(weights(models), before, strict=True))
    return [errors, same]


@pytest.fixture(scope="module")
def placements() -> dict[str, list[dict[str, Any]]]:
    return {"hosted by one rank": [scenarios(range(3))], "by collectives": run(worker, 3)}


PLACES = ("hosted by one rank", "by collectives")


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_a_round_reads_no_value(placements: dict[str, list[dict[str, Any]]], place: str, delay: int) -> None:
    for results in placements[place]:
        assert results[f"read, {delay}"] == []


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_the_mean_is_the_mean(placements: dict[str, list[dict[str, Any]]], place: str, delay: int) -> None:
    for results in placements[place]:
        for tensor in results[f"means, {delay}"]:
            assert (tensor == 1).all()


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("inf", "replica 1 not finite after iteration 3: "),
        ("double", "replica 1 has parameters or buffers of other dtypes or shapes, "),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_written_and_all_are_told_later(
    placements: dict[str, list[dict[str, Any]]], place: str, how: str, message: str, delay: int
) -> None:
    """At the next average step."""
    for results in placements[place]:
        (error,), same = results[f"{how}, {delay}"]
        assert error.startswith(f"{2 * K}: {message}")
        assert same
