"""Operations on batches against torchvision's on PIL images: pixel by pixel, each image with its own magnitude.

The tolerance is 0: PIL computes in integers, or in fp32 and fp64 operations that torch has, too. Two exceptions are
stated where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from lookaround_ddp.data.device import ops as ops
from lookaround_ddp.data.device.policies import CODES, GEOMETRY, OPERATIONS, POLICY_OPERATIONS, applied

N = 40
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 17, 23)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Noise; every third image of low contrast; others of a single value, four values, two, or posterized.

    Stretched to 0 to 255, some of the last's values are integers but for the rounding, which decides what they become.
    """
    generator = torch.Generator().manual_seed(sum(shape))
    images = torch.randint(0, 256, (N, *shape), generator=generator, dtype=torch.uint8)
    images[::3] = images[::3] // 4 + 90
    images[5::4] = images[5::4] // 8 * 8
    images[1], images[2], images[4] = 77, images[2] // 64 * 64, images[4] // 250
    return images


def each(images: Tensor, change: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    """The images, each changed as a PIL image, given its number."""
    return torch.stack([F.pil_to_tensor(change(F.to_pil_image(image), n)) for n, image in enumerate(images)])


def magnitudes(low: float, high: float) -> Tensor:
    """One for each image; 0 among them."""
    values = torch.linspace(low, high, N, dtype=torch.float64)
    values[7] = 0
    return values


MAGNITUDES = {
    "ShearX": magnitudes(-0.99, 0.99),
    "ShearY": magnitudes(-0.99, 0.99),
    "TranslateX": magnitudes(-35, 35),
    "TranslateY": magnitudes(-35, 35),
    "Rotate": magnitudes(-180, 180),
    "Brightness": magnitudes(-0.99, 0.99),
    "Color": magnitudes(-0.99, 0.99),
    "Contrast": magnitudes(-0.99, 0.99),
    "Sharpness": magnitudes(-0.99, 0.99),
    "Posterize": torch.arange(N) % 8 + 1,
    "Solarize": magnitudes(0, 255),
}


@shapes
@pytest.mark.parametrize("name", [*GEOMETRY, *OPERATIONS])
def test_an_operation_of_the_policies(name: str, shape: tuple[int, ...]) -> None:
    images, own = pictures(shape), MAGNITUDES.get(name, torch.zeros(N))
    nearest = InterpolationMode.NEAREST
    expected = each(images, lambda image, n: _apply_op(image, name, own[n].item(), nearest, None))
    found = applied(images.clone(), torch.full((N,), CODES[name]), own.double())
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)


@shapes
def test_each_image_has_its_own_operation(shape: tuple[int, ...]) -> None:
    images, codes = pictures(shape), torch.arange(N) % len(POLICY_OPERATIONS)
    own = torch.tensor([MAGNITUDES.get(POLICY_OPERATIONS[code], torch.zeros(N))[n] for n, code in enumerate(codes)])
    nearest = InterpolationMode.NEAREST
    expected = each(
        images, lambda image, n: _apply_op(image, POLICY_OPERATIONS[codes[n]], own[n].item(), nearest, None)
    )
    assert torch.equal(applied(images.clone(), codes, own.double()), expected)


@shapes
def test_quarter_turns(shape: tuple[int, ...]) -> None:
    """PIL rotates by these without a matrix, if the image is square."""
    images = pictures(shape)
    degrees = torch.tensor([0.0, 90.0, 180.0, 270.0, -90.0, 360.0, 450.0, -180.0] * (N // 8))
    expected = each(images, lambda image, n: F.rotate(image, degrees[n].item()))
    assert torch.equal(ops.affine(images, ops.rotation(degrees, *shape[1:])), expected)


@shapes
def test_crops(shape: tuple[int, ...]) -> None:
    images = pictures(shape)
    top, left = torch.arange(N) % 6, torch.arange(N) % 5
    height, width = shape[1] - 5, shape[2] - 4
    expected = each(images, lambda image, n: F.crop(image, int(top[n]), int(left[n]), height, width))
    assert torch.equal(ops.crop(images, top, left, (height, width)), expected)


@shapes
def test_perspectives(shape: tuple[int, ...]) -> None:
    """The coefficients are rounded to fp32 on both sides, from another solution of the same equations.

    So one of them may differ in its last bit, which can move a pixel across a border; allowed are 1 of 1,000 pixels.
    """
    torch.manual_seed(0)
    images = pictures(shape)
    drawn = [T.RandomPerspective.get_params(shape[2], shape[1], 0.1 + 0.8 * n / N) for n in range(N)]
    expected = each(images, lambda image, n: F.perspective(image, *drawn[n], InterpolationMode.BILINEAR, [0]))
    found = ops.perspective(images, torch.tensor([corners for _, corners in drawn]))
    assert (found != expected).double().mean() <= 1e-3
    assert found.any(1).double().mean() > 0.4  # not mere black


@shapes
@pytest.mark.parametrize("size", [(16, 16), (24, 20), (64, 64)], ids=str)
def test_resized_crops(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """A grey value is allowed where a box gets lower: Pillow 13 may go down the columns first then, if that is less
    work, older ones never do; and between the two passes values are rounded.
    """
    torch.manual_seed(0)
    images = pictures(shape)
    boxes = [T.RandomResizedCrop.get_params(image, [0.05, 1.0], [0.5, 2.0]) for image in images]
    expected = each(images, lambda image, n: F.resized_crop(image, *boxes[n], size))
    found = ops.resized_crop(images, torch.tensor(boxes), size)
    difference = (found.int() - expected.int()).abs()
    lower = torch.tensor([height > size[0] for _, _, height, _ in boxes])
    assert difference.max() <= 1
    assert not difference[~lower].any()


@shapes
@pytest.mark.parametrize("size", [(16, 16), (28, 28), (64, 64)], ids=str)
def test_whole_images_resized(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    images = pictures(shape)
    whole = torch.tensor([[0, 0, *shape[1:]]])
    difference = (
        ops.resized_crop(images, whole, size).int() - each(images, lambda image, n: F.resize(image, size))
    ).abs()
    assert difference.max() <= (shape[1] > size[0])


BATCHED: Sequence[Callable[[Tensor], Tensor]] = [
    lambda images: ops.affine(images, ops.rotation(torch.full((len(images),), 33.0), *images.shape[2:])),
    lambda images: ops.perspective(
        images, torch.tensor([[[2, 3], [20, 1], [22, 16], [1, 14]]]).repeat(len(images), 1, 1)
    ),
    lambda images: ops.resized_crop(images, torch.tensor([[2, 3, 11, 17]]).repeat(len(images), 1), (20, 21)),
    lambda images: ops.sharpness(images, torch.full((len(images),), 1.7)),
    lambda images: ops.contrast(images, torch.full((len(images),), 0.3)),
    ops.equalize,
    ops.autocontrast,
]


@pytest.mark.parametrize("operation", BATCHED)
def test_an_image_does_not_depend_on_those_beside_it(operation: Callable[[Tensor], Tensor]) -> None:
    """Fused or vectorized arithmetic could round differently at another place in memory."""
    images = pictures((3, 17, 23))
    whole = operation(images)
    for part in (slice(0, 1), slice(5, 8), slice(3, 36)):
        assert torch.equal(operation(images[part].clone()), whole[part])


def test_images_are_not_written_over_by_the_operations_themselves() -> None:
    images = pictures((3, 17, 23))
    before = images.clone()
    for operation in BATCHED:
        operation(images)
    assert torch.equal(images, before)
