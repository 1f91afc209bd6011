"""Augmentations by name: torchvision's, and the arguments that each takes, with the values that mean something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from lookaround_ddp.config import ListOf, Section, validated
from lookaround_ddp.errors import UserError, shortened

Pair = TypeVar("Pair", bound=tuple[float, float])


def _ordered(pair: Pair) -> Pair:
    if pair[0] > pair[1]:
        raise ValueError("the first should not be greater than the second")
    return pair


Probability = Annotated[float, Field(ge=0, le=1)]
Fill = Annotated[int | float, Field(ge=0, le=255)] | ListOf[Annotated[int | float, Field(ge=0, le=255)]] | None
Interpolation = Annotated[InterpolationMode, Field(strict=False)]
Side = Annotated[int, Field(ge=0, le=2**14)]
Two = Annotated[tuple[Side, Side], Field(strict=False)]
Four = Annotated[tuple[Side, Side, Side, Side], Field(strict=False)]
Angle = Annotated[float, Field(ge=-360, le=360)]
Angles = Annotated[tuple[Angle, Angle], Field(strict=False), AfterValidator(_ordered)]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]
Ratio = Annotated[float, Field(ge=1e-3, le=1e3)]
Ratios = Annotated[tuple[Ratio, Ratio], Field(strict=False), AfterValidator(_ordered)]


class NoArguments(Section):
    pass


class CropArguments(Section):
    padding: Side | Two | Four | None = None
    pad_if_needed: bool = False
    fill: Fill = 0
    padding_mode: Literal["constant", "edge", "reflect", "symmetric"] = "constant"


class ChanceArguments(Section):
    p: Probability = 0.5


class RotationArguments(Section):
    degrees: Annotated[float, Field(ge=0, le=360)] | Angles = 15
    interpolation: Interpolation = InterpolationMode.NEAREST
    expand: bool = False
    center: Annotated[tuple[float, float], Field(strict=False)] | None = None
    fill: Fill = 0


class RandaugmentArguments(Section):
    num_ops: int = Field(2, ge=1, le=100)
    num_magnitude_bins: int = Field(31, ge=2, le=1000)
    magnitude: int = Field(9, ge=0)
    interpolation: Interpolation = InterpolationMode.NEAREST
    fill: Fill = None


class AutoaugmentArguments(Section):
    policy: Literal["imagenet", "cifar10", "svhn"] | None = None
    interpolation: Interpolation = InterpolationMode.NEAREST
    fill: Fill = None


class PerspectiveArguments(Section):
    distortion_scale: Probability = 0.5
    p: Probability = 0.5
    interpolation: Interpolation = InterpolationMode.BILINEAR
    fill: Fill = 0


class ResizedCropArguments(Section):
    scale: Shares = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)
    interpolation: Interpolation = InterpolationMode.BILINEAR
    antialias: bool = True


class MixArguments(Section):
    alpha: float | None = Field(None, ge=1e-3, le=1e3)
    """Of Beta(alpha, alpha), from which a batch's share is drawn; by default 0.2 for mixup and 1 for cutmix."""


ARGUMENTS: dict[str, type[Section]] = {
    "none": NoArguments,
    "crop": CropArguments,
    "hflip": ChanceArguments,
    "vflip": ChanceArguments,
    "rotation": RotationArguments,
    "randaugment": RandaugmentArguments,
    "autoaugment": AutoaugmentArguments,
    "perspective": PerspectiveArguments,
    "equalize": ChanceArguments,
    "random_resized_crop": ResizedCropArguments,
    "mixup": MixArguments,
    "cutmix": MixArguments,
}


# name -> transform of a PIL image, given the dataset and the arguments of a {name: {argument: value}} entry
AUGMENTATIONS: dict[str, Callable[..., Any]] = {
    "none": lambda data: torch.nn.Identity(),
    "crop": lambda data, padding=None, **kw: T.RandomCrop(
        data.size, data.size // 8 if padding is None else padding, **kw
    ),
    "hflip": lambda data, **kw: T.RandomHorizontalFlip(**kw),
    "vflip": lambda data, **kw: T.RandomVerticalFlip(**kw),
    "rotation": lambda data, degrees=15, **kw: T.RandomRotation(degrees, **kw),
    "randaugment": lambda data, **kw: T.RandAugment(**kw),
    "autoaugment": lambda data, policy=None, **kw: T.AutoAugment(
        data.policy if policy is None else T.AutoAugmentPolicy(policy), **kw
    ),
    "perspective": lambda data, **kw: T.RandomPerspective(**kw),
    "equalize": lambda data, **kw: T.RandomEqualize(**kw),
    "random_resized_crop": lambda data, **kw: T.RandomResizedCrop(data.size, **kw),
}


MIXES = {"mixup": 0.2, "cutmix": 1.0}  # these mix the images of a batch, on the device -> alpha, by default


def checked(name: str, arguments: dict[str, Any], channels: int) -> dict[str, Any]:
    """Returns the arguments of one of these, without defaults.

    Args:
        channels: of the images.

    Raises:
        UserError: one is unknown, or its value means nothing.
    """
    where = f"augmentation {name} with {shortened(str(arguments))}: "
    given = validated(ARGUMENTS[name], arguments, where).model_dump(exclude_unset=True)
    if isinstance(given.get("fill"), tuple) and len(given["fill"]) != channels:
        raise UserError(f"{where}the images have {channels} channels: give fill one number, or as many")
    if name == "randaugment" and given.get("magnitude", 9) >= given.get("num_magnitude_bins", 31):
        raise UserError(f"{where}magnitude (by default 9) should be less than num_magnitude_bins (31)")
    return given
