"""torchvision's transforms as steps on a batch, which draw for each image alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from lookaround_ddp.data.device import ops
from lookaround_ddp.data.device.policies import autoaugment, changed, randaugment
from lookaround_ddp.data.draws import Draws
from lookaround_ddp.errors import UserError

Step = Callable[[Tensor, Draws], Tensor]  # it may write over the images that it is given


NEAREST, BILINEAR = InterpolationMode.NEAREST, InterpolationMode.BILINEAR


ATTEMPTS = 10  # torchvision draws so many boxes, and takes the first that fits


INSTEAD = "set data.pipeline to workers, or to auto"


def make_steps(named: Sequence[tuple[str, Any]]) -> list[Step]:
    """Makes a step of each transform, given with the name that it has in the config.

    Raises:
        UserError: a transform cannot be done on a device; the message names it.
    """
    return [_step_of(name, transform) for name, transform in named]


def _step_of(name: str, transform: Any) -> Step:
    kind = type(transform)
    if kind not in STEPS:
        raise UserError(f"data.pipeline=device has no augmentation {name}: {INSTEAD}")
    make, only = STEPS[kind]
    for attribute, values in only.items():
        value = getattr(transform, attribute)
        if value not in values:
            raise UserError(f"data.pipeline=device has no augmentation {name} with {attribute} {value}: {INSTEAD}")
    return make(transform)


def _identity_step(transform: torch.nn.Identity) -> Step:
    return lambda images, draws: images


def _crop(transform: T.RandomCrop) -> Step:
    height, width = transform.size

    def step(images: Tensor, draws: Draws) -> Tensor:
        if transform.padding is not None:
            images = F.pad(images, transform.padding, transform.fill, transform.padding_mode)
        top, left = draws.integers(images.shape[2] - height + 1, images.shape[3] - width + 1).T
        return ops.crop(images, top, left, (height, width))

    return step


def _flip(dimension: int) -> Callable[[Any], Step]:
    def make(transform: T.RandomHorizontalFlip | T.RandomVerticalFlip) -> Step:
        return lambda images, draws: changed(images, draws.chosen(transform.p), lambda some: some.flip(dimension))

    return make


def _rotation(transform: T.RandomRotation) -> Step:
    low, high = transform.degrees

    def step(images: Tensor, draws: Draws) -> Tensor:
        degrees = low + (high - low) * draws.uniform(1)[:, 0]
        return ops.affine(images, ops.rotation(degrees, *images.shape[2:]))

    return step


def _equalize(transform: T.RandomEqualize) -> Step:
    return lambda images, draws: changed(images, draws.chosen(transform.p), ops.equalize)


def _perspective(transform: T.RandomPerspective) -> Step:
    def step(images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        chosen = draws.chosen(transform.p)
        most = [int(transform.distortion_scale * (side // 2)) + 1 for side in (width, height)]
        inwards = draws.integers(*most * 4).view(-1, 4, 2)[chosen]
        # whether a corner is at the right, and whether at the bottom
        far = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.bool)
        corners = torch.where(far, torch.tensor([width - 1, height - 1]) - inwards, inwards)
        return changed(images, chosen, ops.perspective, corners)

    return step


def _resized_crop(transform: T.RandomResizedCrop) -> Step:
    def step(images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[2:]
        numbers = draws.uniform(4 * ATTEMPTS).view(-1, ATTEMPTS, 4).tolist()
        boxes = [_box(own, height, width, transform.scale, transform.ratio) for own in numbers]
        return ops.resized_crop(images, torch.tensor(boxes), tuple(transform.size))

    return step


def _box(
    attempts: Sequence[Sequence[float]], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the first box that fits, as RandomResizedCrop.get_params draws it.

    If none of the attempts fits, it is the largest central box of an allowed shape.

    Args:
        attempts: four numbers from [0, 1) each, for a box's area, shape, top and left.
        height: the image's, in pixels; `width` likewise.
        scale: the least and greatest area, as shares of the image's.
        ratio: the least and greatest width / height.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for size, shape, down, across in attempts:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = math.exp(low + (high - low) * shape)
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return int(down * (height - tall + 1)), int(across * (width - wide + 1)), tall, wide
    wide, tall = width, height
    if width / height < min(ratio):
        tall = round(width / min(ratio))
    elif width / height > max(ratio):
        wide = round(height * max(ratio))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _resize_step(transform: T.Resize) -> Step:
    height, width = transform.size  # a pair: only photographs, which are in files, have a number

    def step(images: Tensor, draws: Draws) -> Tensor:
        whole = torch.tensor([[0, 0, *images.shape[2:]]])
        return ops.resized_crop(images, whole, (height, width))

    return step


# class of a transform -> the function that makes its step, and the values of its attributes that the step can handle
STEPS: Mapping[type, tuple[Callable[[Any], Step], Mapping[str, tuple[Any, ...]]]] = {
    torch.nn.Identity: (_identity_step, {}),
    T.Resize: (_resize_step, {"interpolation": (BILINEAR,)}),
    T.RandomCrop: (_crop, {"pad_if_needed": (False,)}),
    T.RandomHorizontalFlip: (_flip(3), {}),
    T.RandomVerticalFlip: (_flip(2), {}),
    T.RandomRotation: (
        _rotation,
        {"interpolation": (NEAREST,), "expand": (False,), "center": (None,), "fill": (0, None)},
    ),
    T.RandAugment: (randaugment, {"interpolation": (NEAREST,), "fill": (0, None)}),
    T.AutoAugment: (autoaugment, {"interpolation": (NEAREST,), "fill": (0, None)}),
    T.RandomPerspective: (_perspective, {"interpolation": (BILINEAR,), "fill": (0, None)}),
    T.RandomEqualize: (_equalize, {}),
    T.RandomResizedCrop: (_resized_crop, {"interpolation": (BILINEAR,)}),
}
