"""Which device and backend a rank takes, on machines with GPUs that are not there."""

from __future__ import annotations

import pytest
import torch

from lookaround_ddp.distributed import _device


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
