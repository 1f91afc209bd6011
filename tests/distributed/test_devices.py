"""Which device and backend a rank takes, on machines with GPUs that are not there."""

from __future__ import annotations

import os

import pytest
import torch

from lookaround_ddp.config.load import make_config
from lookaround_ddp.distributed.rendezvous import _device, join, processes_per_node
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError


@pytest.mark.parametrize(
    ("gpus", "local_rank", "environment", "device", "backend"),
    [
        (0, 1, {"LOCAL_WORLD_SIZE": "2"}, "cpu", "gloo"),
        (1, 0, {}, "cuda:0", "nccl"),
        (2, 1, {"LOCAL_WORLD_SIZE": "2"}, "cuda:1", "nccl"),
        (2, 3, {"LOCAL_WORLD_SIZE": "4"}, "cuda:1", "gloo"),  # NCCL refuses two ranks on a GPU
        (1, 1, {"LOCAL_WORLD_SIZE": "2", "SLURM_GPUS_ON_NODE": "2"}, "cuda:0", "nccl"),  # --gpus-per-task=1
        (1, 1, {"LOCAL_WORLD_SIZE": "2", "SLURM_GPUS_ON_NODE": "1"}, "cuda:0", "gloo"),
    ],
)
def test_device_and_backend(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    local_rank: int,
    environment: dict[str, str],
    device: str,
    backend: str,
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert _device(local_rank) == (torch.device(device), backend)
    assert taken == ([torch.device(device)] if gpus else [])


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_on_a_gpu(monkeypatch: pytest.MonkeyPatch, deterministic: bool) -> None:
    """Those whose bits are the same each time, unless the config asks for the fastest."""
    monkeypatch.setattr("lookaround_ddp.distributed.rendezvous._device", lambda _: (torch.device("cuda:0"), "nccl"))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        with join(make_config({"deterministic": deterministic})):
            assert torch.are_deterministic_algorithms_enabled() is deterministic
            assert torch.backends.cudnn.deterministic is deterministic
            assert torch.backends.cudnn.benchmark is not deterministic
            assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
            assert torch.utils.deterministic.fill_uninitialized_memory is not deterministic
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("device", "precision", "products"),
    [("cuda:0", "fp32", False), ("cuda:0", "tf32", True), ("cuda:0", "bf16", False), ("cpu", "tf32", False)],
)
def test_tf32_is_for_matrix_products_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, products: bool
) -> None:
    """As the config says, whatever was before; a CPU stays as it is. PyTorch's old and new names of it agree."""
    monkeypatch.setattr("lookaround_ddp.distributed.rendezvous._device", lambda _: (torch.device(device), "nccl"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if products or device == "cpu" else "high")
    try:
        with join(make_config({"precision": precision, "deterministic": False})):
            assert torch.get_float32_matmul_precision() == ("high" if products else "highest")
            assert torch.backends.cuda.matmul.allow_tf32 is products
            assert torch.backends.cuda.matmul.fp32_precision == ("tf32" if products else "ieee")
            assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.benchmark = False


def test_a_cpu_has_only_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lookaround_ddp.distributed.rendezvous._device", lambda _: (torch.device("cpu"), "gloo"))
    with join(make_config({})):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("replicas", "devices", "nodes", "chosen"),
    [
        (3, 1, 1, 1),
        (3, 2, 1, 2),  # 2 and 1
        (3, 3, 1, 3),
        (3, 8, 1, 6),  # two shards each; two devices stay idle
        (4, 3, 1, 2),  # three would be no faster: 2, 1 and 1
        (6, 4, 1, 3),
        (6, 4, 2, 3),
        (1, 8, 1, 8),
        (5, 4, 2, 2),  # 2, 1, 1 and 1; of 8 ranks five have no work
    ],
)
def test_as_many_processes_as_make_an_iteration_short(replicas: int, devices: int, nodes: int, chosen: int) -> None:
    assert processes_per_node(replicas, devices, nodes) == chosen


def test_more_nodes_than_replicas() -> None:
    with pytest.raises(UserError, match="5 nodes with 2 devices each cannot share 3 replicas: take at most 3 nodes"):
        processes_per_node(3, 2, 5)


def test_each_replica_has_one_place() -> None:
    hosted = [list(World(rank, 3, 5, torch.device("cpu"), "gloo").hosted) for rank in range(3)]
    assert hosted == [[0, 1], [2, 3], [4]]
