"""Pipelines: a replica's own augmentation, with those before and after around it, to uint8 tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms.functional import pil_to_tensor

from lookaround_ddp.config import Augmentation, AugmentConfig
from lookaround_ddp.data.augmentations import AUGMENTATIONS, MIXES, checked
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.draws import Draws
from lookaround_ddp.errors import UserError, nearest, told, trace_below
from lookaround_ddp.own_code import Code, imported, is_path

if TYPE_CHECKING:
    from timm.data import Mixup

INTERPOLATION = T.InterpolationMode.BILINEAR  # of images that are resized to be scored


@dataclass(frozen=True)
class Pipeline:
    """One augmentation of one replica: a PIL image -> uint8 (C, size, size), then perhaps mixing a batch."""

    transform: Callable[[Any], Tensor]
    mix: Mixup | None = None
    custom: bool = False  # somebody's own code may draw from `random` and numpy, which must then be seeded too
    named: tuple[tuple[str, Any], ...] = ()  # the transforms that it is composed of, by their names in a config
    # the same transforms for uint8 (n, C, H, W) on a device; None until `batched` makes them
    batched: Callable[[Tensor, Draws], Tensor] | None = None


class StepFailed(Exception):
    """A transform that raised an error, whatever it is, or returned no image; the message names both in a line."""

    def __init__(self, name: str, cause: str, trace: str = "") -> None:
        super().__init__(f"augmentation {name}: {cause}")
        self.what, self.cause, self.trace = f"augmentation {name}", cause, trace


@dataclass(frozen=True)
class Chain:
    """Named transforms, one after the other, and the last image as a tensor.

    Raises:
        StepFailed: one of them raised an error, or left the program; they made no image that the network takes.
    """

    steps: tuple[tuple[str, Any], ...]
    last: Callable[[Any], Tensor]  # makes a tensor of what came of them

    def __call__(self, image: Any) -> Tensor:
        for name, step in self.steps:
            try:
                image = step(image)
            except (Exception, SystemExit) as error:
                raise StepFailed(name, told(error), trace_below(error)) from error
            if not isinstance(image, (Image.Image, Tensor)):
                raise StepFailed(name, f"it returned {type(image).__name__}, no image")
        try:
            return self.last(image)
        except UserError as error:
            raise StepFailed("+".join(name for name, _ in self.steps), str(error)) from None


def train_pipelines(
    augment: AugmentConfig,
    own: Sequence[Augmentation],
    dataset: Dataset,
    smoothing: float,
    code: Code = imported,
) -> list[Pipeline]:
    """Makes a pipeline of each of a replica's own augmentations, with `before` and `after` around it.

    Args:
        code: what becomes of a dotted path.

    Raises:
        UserError: an unknown name (with the nearest known one), or arguments that do not fit.
    """
    return [_pipeline([*augment.before, each, *augment.after], dataset, smoothing, code) for each in own]


def evaluation_transform(dataset: Dataset) -> Callable[[Any], Tensor]:
    """Makes the transform for scoring: a PIL image -> uint8 (C, size, size), without randomness."""
    return central_square(dataset.size, dataset.channels, crop_of(dataset), INTERPOLATION.value)


def crop_of(dataset: Dataset) -> float:
    """Returns the share of an image's shorter side that is shown for scoring.

    All of it or, of a photograph, 87.5 % (the usual 224 of 256).
    """
    return 0.875 if dataset.native is None else 1.0


def central_square(size: int, channels: int, crop: float, interpolation: str) -> Callable[[Any], Tensor]:
    """Makes a transform that shows the central square of this share of the shorter side, in `size` pixels."""
    resize = T.Resize(round(size / crop), T.InterpolationMode(interpolation))
    return T.Compose([resize, T.CenterCrop(size), _to_tensor(size, channels)])


def _pipeline(entries: Sequence[Augmentation], dataset: Dataset, smoothing: float, code: Code) -> Pipeline:
    steps: list[tuple[str, Any]] = []
    mixes: dict[str, float] = {}
    custom = cropped = False
    for entry in entries:
        for name, arguments in _parts(entry):
            if name in MIXES:
                mixes[name] = checked(name, arguments, dataset.channels).get("alpha") or MIXES[name]
                continue
            steps.append((name, _transform(name, arguments, dataset, code)))
            custom |= name not in AUGMENTATIONS
            cropped |= name == "random_resized_crop"
    if not cropped:
        steps = [*(("resize", each) for each in _resize_to_dataset(dataset)), *steps]
    mix = None
    if mixes:
        from timm.data import Mixup  # a second, which those that mix nothing need not wait for

        mix = Mixup(
            mixup_alpha=mixes.get("mixup", 0.0),
            cutmix_alpha=mixes.get("cutmix", 0.0),
            label_smoothing=smoothing,
            num_classes=dataset.classes,
        )
    chain = Chain(tuple(steps), _to_tensor(dataset.size, dataset.channels))
    return Pipeline(chain, mix, custom, tuple(steps))


def _resize_to_dataset(dataset: Dataset) -> list[Any]:
    if dataset.native is None:
        return [T.Resize(dataset.size), T.CenterCrop(dataset.size)]
    return [] if dataset.size == dataset.native else [T.Resize((dataset.size, dataset.size))]


def _parts(entry: Augmentation) -> list[tuple[str, dict[str, Any]]]:
    """Splits an entry of the config into pairs of a name and its arguments.

    'crop+hflip' has two names without arguments; {rotation: {degrees: 30}} has one name with arguments.
    """
    if isinstance(entry, str):
        return [(name.strip(), {}) for name in entry.split("+")]
    return list(entry.items())


def _transform(name: str, arguments: dict[str, Any], dataset: Dataset, code: Code) -> Callable[[Any], Any]:
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name](dataset, **checked(name, arguments, dataset.channels))
    try:
        if is_path(name):
            return code(name, arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"augmentation {name} with {arguments}: {error}") from None
    hint = nearest(name, [*AUGMENTATIONS, *MIXES])
    raise UserError(f"unknown augmentation {name!r}: {hint} (an own one is a dotted path, such as my.module.Class)")


def _to_tensor(size: int, channels: int) -> Callable[[Any], Tensor]:
    return partial(_tensor, expected=(channels, size, size))


def _tensor(image: Any, expected: tuple[int, ...]) -> Tensor:
    """Turns a PIL image into a uint8 tensor, and passes on one that somebody's own transform returned.

    Raises:
        UserError: a tensor is not uint8, or of another shape than expected.
    """
    tensor = image if isinstance(image, Tensor) else pil_to_tensor(image)
    if tensor.dtype != torch.uint8:
        raise UserError(f"it returned a {tensor.dtype} tensor: return a PIL image or uint8, which is normalized later")
    if tensor.shape != expected:
        found, wanted = ("x".join(map(str, shape)) for shape in (tensor.shape, expected))
        raise UserError(f"it made {found} values of an image, and the network takes {wanted}")
    return tensor
