"""Mixing the images of a batch with each other, and their targets likewise: timm's mixup and cutmix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # timm takes a second to import, and few mix
    from timm.data import Mixup


def mixed(mix: Mixup, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a batch in which every image is mixed with another one, and the targets: (n, classes).

    timm mixes a batch with its reverse, and takes none of an odd number of images, whose middle one would stay as it
    is. There the three in the middle go round instead. timm gets each image beside its partner: twice the batch.
    """
    count = len(images)
    if count % 2 == 0:
        return mix(images, labels)
    partners = list(reversed(range(count)))
    middle = count // 2
    partners[middle : middle + 2] = reversed(partners[middle : middle + 2])
    twice = torch.tensor([*range(count), *reversed(partners)], device=images.device)
    images, targets = mix(images[twice], labels[twice])
    return images[:count], targets[:count]
