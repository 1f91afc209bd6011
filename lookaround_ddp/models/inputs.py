"""How images and networks get onto the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def placed(model: nn.Module, channels_last: bool, device: torch.device) -> nn.Module:
    """Moves the network to the device, in the memory layout that the config asks for."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return model.to(device).to(memory_format=layout)


class Normalize:
    """uint8 images (n, C, H, W) -> floats of zero mean and unit variance, on the device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool) -> None:
        shape = (1, len(mean), 1, 1)
        self.mean = 255 * torch.tensor(mean, device=device).view(shape)
        self.scale = 1 / (255 * torch.tensor(std, device=device).view(shape))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True).float()
        return images.sub_(self.mean).mul_(self.scale).contiguous(memory_format=self.layout)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision in ("fp32", "tf32"):  # of the two, `join` has told the kernels
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
