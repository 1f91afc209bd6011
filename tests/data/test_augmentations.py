"""Arguments of augmentations: those that mean something, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from lookaround_ddp.config.schema import AugmentConfig, Config
from lookaround_ddp.data.augmentations import ARGUMENTS, AUGMENTATIONS
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.transforms import StepFailed, train_pipelines
from lookaround_ddp.errors import UserError

PLAIN = AugmentConfig(before=(), after=())


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return open_dataset(Config().data, seed=0)


NAN = float("nan")
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("hflip", {"p": 2}, "p is 2: should be less than or equal to 1"),
    ("vflip", {"p": "nope"}, "p is 'nope': should be a valid number"),
    ("equalize", {"p": True}, "p is True: should be a valid number"),
    ("perspective", {"p": NAN}, "p is nan: should be a finite number"),
    ("perspective", {"distortion_scale": 9}, "distortion_scale is 9: should be less than or equal to 1"),
    ("rotation", {"degrees": [30, -30]}, "degrees is [30, -30]: the first should not be greater than the second"),
    ("rotation", {"degrees": -3}, "degrees is -3: should be greater than or equal to 0"),
    ("rotation", {"interpolation": "cubic"}, "interpolation is 'cubic': should be 'nearest', "),
    ("rotation", {"fill": [1, 2]}, "the images have 1 channels: give fill one number, or as many"),
    ("rotation", {"angle": 3}, "unknown key angle: known here: degrees, interpolation, "),
    ("randaugment", {"magnitude": 31}, "magnitude (by default 9) should be less than num_magnitude_bins"),
    ("randaugment", {"num_magnitude_bins": 9}, "magnitude (by default 9) should be less than num_magnitude_bins"),
    ("randaugment", {"num_ops": -1}, "num_ops is -1: should be greater than or equal to 1"),
    ("autoaugment", {"policy": "mnist"}, "policy is 'mnist': should be 'imagenet', 'cifar10' or 'svhn'"),
    ("crop", {"padding": -6}, "padding is -6: should be greater than or equal to 0"),
    ("crop", {"padding_mode": "mirror"}, "padding_mode is 'mirror': should be 'constant', 'edge', "),
    ("random_resized_crop", {"scale": [3, 1]}, "scale.0 is 3: should be less than or equal to 1"),
    ("random_resized_crop", {"scale": [0.5, 0.1]}, "scale is [0.5, 0.1]: the first should not be greater than"),
    ("random_resized_crop", {"ratio": [-1, 1]}, "ratio.0 is -1: should be greater than or equal to 0.001"),
    ("mixup", {"alpha": 0}, "alpha is 0: should be greater than or equal to 0.001"),
    ("cutmix", {"alpha": NAN}, "alpha is nan: should be a finite number"),
    ("mixup", {"beta": 1}, "unknown key beta: known here: alpha"),
    ("none", {"p": 1}, "unknown key p: known here: none"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSED)
def test_arguments_that_mean_nothing_are_refused(
    digits: Dataset, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as raised:
        train_pipelines(PLAIN, [{name: arguments}], digits, 0.0)
    assert str(raised.value).startswith(f"augmentation {name} with {arguments}: {message}")


TAKEN: list[tuple[str, dict[str, Any], Any]] = [  # an entry and torchvision's own object for it
    ("hflip", {"p": 0.25}, T.RandomHorizontalFlip(0.25)),
    ("rotation", {"degrees": [-30, 60], "fill": 7}, T.RandomRotation((-30, 60), fill=7)),
    ("rotation", {"interpolation": "bilinear"}, T.RandomRotation(15, T.InterpolationMode.BILINEAR)),
    ("randaugment", {"num_ops": 3, "magnitude": 30}, T.RandAugment(3, 30)),
    ("autoaugment", {"policy": "cifar10"}, T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)),
    ("autoaugment", {}, T.AutoAugment(T.AutoAugmentPolicy.SVHN)),
    ("perspective", {"distortion_scale": 1, "p": 1}, T.RandomPerspective(1, 1)),
    ("crop", {"padding": [1, 2], "padding_mode": "reflect"}, T.RandomCrop(16, (1, 2), padding_mode="reflect")),
    ("crop", {}, T.RandomCrop(16, 2)),
    ("random_resized_crop", {"scale": [0.2, 1]}, T.RandomResizedCrop(16, (0.2, 1))),
]


@pytest.mark.parametrize(("name", "arguments", "theirs"), TAKEN)
def test_arguments_reach_torchvision(digits: Dataset, name: str, arguments: dict[str, Any], theirs: Any) -> None:
    (pipeline,) = train_pipelines(PLAIN, [{name: arguments}], digits, 0.0)
    for number in range(5):
        image = digits.train.image(number)
        torch.manual_seed(number)
        found = pipeline.transform(image)
        torch.manual_seed(number)
        assert torch.equal(found, T.functional.pil_to_tensor(theirs(image)))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_defaults_are_torchvision_s(digits: Dataset, name: str) -> None:
    """Those that the schemas say are the ones that a transform has which is made without them."""
    said = {key: value for key, value in ARGUMENTS[name]().model_dump().items() if value is not None}
    found, expected = (vars(AUGMENTATIONS[name](digits, **given)) for given in (said, {}))
    assert {key: str(value) for key, value in found.items()} == {key: str(value) for key, value in expected.items()}


def nothing(image: Image.Image) -> None:
    """Forgets to return the image."""


def coloured(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


RETURNED = {
    "tests.data.test_augmentations.nothing": "test_augmentations.nothing: it returned NoneType, no image",
    "tests.data.test_augmentations.coloured": "made 3x16x16 values of an image, and the network takes 1x16x16",
}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        *RETURNED.items(),
        (
            {"torchvision.transforms.Resize": {"size": 7}},
            "made 1x7x7 values of an image, and the network takes ",
        ),
    ],
)
def test_what_is_no_image_for_the_network(digits: Dataset, entry: Any, message: str) -> None:
    (pipeline,) = train_pipelines(PLAIN, [entry], digits, 0.0)
    with pytest.raises(StepFailed) as raised:
        pipeline.transform(digits.train.image(0))
    assert message in str(raised.value)
