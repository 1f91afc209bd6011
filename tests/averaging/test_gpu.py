"""Averages on a GPU have the bits of those on a CPU: hosted by one rank, and by ranks that share the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lookaround_ddp import Lookaround
from lookaround_ddp.averaging.replica_group import ReplicaGroup
from tests.support.exchanges import averaged, tensors_of
from tests.support.ranks import run, same_bits
from tests.support.waits import waits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda", 0)


def replicas_on(device: torch.device, numbers: range) -> list[list[Tensor]]:
    return [[tensor.to(device) for tensor in tensors_of(number)] for number in numbers]


def average_on(device: torch.device, numbers: range, replica_group: ReplicaGroup, **options: Any) -> list[list[Tensor]]:
    rows = replicas_on(device, numbers)
    averaged(rows, replica_group, share=True, **options)
    return [[tensor.cpu() for tensor in row] for row in rows]


@pytest.mark.parametrize("replicas", [1, 2, 3, 6])
@pytest.mark.parametrize("write", ["mean", "first", "difference"])
def test_hosted_replicas(replicas: int, write: str) -> None:
    replica_group, numbers = ReplicaGroup(None, (replicas,)), range(replicas)
    ours = average_on(GPU, numbers, replica_group, write=write)
    theirs = average_on(torch.device("cpu"), numbers, replica_group, write=write)
    for own, expected in zip(ours, theirs, strict=True):
        assert all(same_bits(a, b) for a, b in zip(own, expected, strict=True))


def worker(rank: int, ranks: int, backend: str) -> list[Any]:
    group = dist.new_group(backend=backend)
    try:
        rows = average_on(
            GPU, range(rank, rank + 1), ReplicaGroup.of(None, 1) if ranks == 1 else replica_group_of(group)
        )
    except (RuntimeError, dist.DistBackendError) as error:
        return [str(error).partition("\n")[0]]
    return rows


def replica_group_of(group: dist.ProcessGroup) -> ReplicaGroup:
    return ReplicaGroup(group, (1,) * dist.get_world_size(group))


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_ranks_that_share_a_gpu(backend: str) -> None:
    """NCCL may refuse two ranks on a GPU, by name; the trainer takes gloo there."""
    results = run(worker, 2, backend)
    if backend == "nccl" and all(isinstance(rows[0], str) for rows in results):
        pytest.skip(f"NCCL refuses two ranks on one GPU: {results[0][0]}")
    alone = average_on(torch.device("cpu"), range(2), ReplicaGroup(None, (2,)))
    for rows in results:
        assert all(same_bits(a, b) for a, b in zip(rows[0], alone[0], strict=True))


def network(value: float) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)).to(GPU)
    model(torch.zeros(1, 3, 5, 5, device=GPU))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def test_the_host_does_not_wait_for_an_average() -> None:
    models = [network(0.0) for _ in range(3)]
    around = Lookaround(models, k=1, measure=True)
    around.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with waits() as found:
            around.step()
            around.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.count("tolist") == len(found)  # of what has come to the host by then


@pytest.mark.parametrize("delay", [0, 1])
def test_a_replica_that_is_not_finite_is_told_at_the_next_average(delay: int) -> None:
    models = [network(float(replica)) for replica in range(3)]
    around = Lookaround(models, k=2, delay=delay)
    for replica, model in enumerate(models):
        model[0].bias.data.fill_(replica)
    models[1][0].bias.data[0] = torch.inf
    for _ in range(3):
        around.step()
    assert [model[0].bias[1].item() for model in models] == [0, 1, 2]
    with pytest.raises(FloatingPointError, match="replica 1 not finite after iteration 2: "):
        around.step()
    with pytest.raises(FloatingPointError, match="replica 1 not finite after iteration 4: "):
        around.check_finite()


def test_weights_stay_where_a_model_has_them() -> None:
    """Views of a row, each with a storage of its own size: what is saved drags nothing along."""
    model = network(1.0)
    weight = model[0].weight
    Lookaround([model, network(2.0)], k=1).average()
    assert weight is model[0].weight
    assert weight.untyped_storage().nbytes() == weight.nbytes
    assert weight.data_ptr() % 64 == 0
