"""Operations on a batch of images, each with a magnitude of its own, that do what torchvision does with PIL images.

Images are uint8 (n, C, H, W) on any device, with 1 or 3 channels; results too. PIL computes in integers, in fp32 or in
fp64, and rounds its own way (it truncates, where torchvision's functions of tensors may round). These follow PIL, so
that a run is augmented alike whichever pipeline it has; sums, products and comparisons alone, each rounded once, make
every pixel independent of the batch it is in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRACTION = 16  # PIL picks the nearest pixel by fixed-point coordinates, with so many bits behind the point


PRECISION = 22  # PIL resizes with fixed-point weights, with so many bits behind the point


LUMA = (19595, 38470, 7471)  # the weights of red, green and blue in PIL's grey, in 65,536ths


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts from each image the part of `size` (height, width) that begins at row `top` and column `left`, both (n,)."""
    height, width = size
    rows = top.to(images.device, non_blocking=True)[:, None] + torch.arange(height, device=images.device)
    columns = left.to(images.device, non_blocking=True)[:, None] + torch.arange(width, device=images.device)
    return _picked(images, rows[:, :, None] * images.shape[3] + columns[:, None, :])


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Moves the pixels of each image by an affine map; a pixel that comes from outside the image is 0.

    The pixel (x, y) of the result is the one nearest to (ax + by + c, dx + ey + f) in the image.

    Args:
        matrices: a, b, c, d, e, f of each image: fp64, (n, 6).
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)
    fixed = torch.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])  # PIL looks at pixels' centres
    fixed = (fixed * 2**FRACTION + 0.5).floor().to(torch.int32).to(images.device, non_blocking=True)
    a, b, c, d, e, f = fixed[:, :, None, None]
    x = torch.arange(width, device=images.device, dtype=torch.int32)
    y = torch.arange(height, device=images.device, dtype=torch.int32)[:, None]
    columns = (a * x + (b * y + c)) >> FRACTION
    rows = (d * x + (e * y + f)) >> FRACTION
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = (rows * width + columns).masked_fill_(~inside, 0).long()
    return _picked(images, places).mul_(inside[:, None])


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Makes the matrices, for `affine`, of rotations counter-clockwise around the centre: fp64, (n, 6)."""
    turns = [-math.radians(each % 360.0) for each in degrees.tolist()]
    cos = torch.tensor([round(math.cos(turn), 15) for turn in turns], dtype=torch.float64)
    sin = torch.tensor([round(math.sin(turn), 15) for turn in turns], dtype=torch.float64)
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, cos * -x + sin * -y + x, -sin, cos, sin * x + cos * -y + y], 1)


def perspective(images: Tensor, corners: Tensor) -> Tensor:
    """Moves the corners of each image to `corners`, and interpolates between the four nearest pixels; 0 outside.

    Args:
        corners: where the top left, top right, bottom right and bottom left corners go, as (x, y): (n, 4, 2).
    """
    height, width = images.shape[2:]
    coefficients = _homographies(corners.double(), height, width).to(images.device, non_blocking=True)
    a, b, c, d, e, f, g, h = coefficients.T[:, :, None, None]
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = (torch.arange(height, device=images.device, dtype=torch.float64) + 0.5)[:, None]
    scale = g * x + h * y + 1
    column, row = (a * x + b * y + c) / scale, (d * x + e * y + f) / scale
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.masked_fill_(~inside, 0.5) - 0.5, row.masked_fill_(~inside, 0.5) - 0.5
    left, top = column.floor(), row.floor()
    dx, dy = (column - left)[:, None], (row - top)[:, None]
    places = []
    for below in (0, 1):
        line = (top + below).clamp_(0, height - 1) * width
        places += [line + (left + right).clamp_(0, width - 1) for right in (0, 1)]
    corner = [_picked(images, place.long()).double() for place in places]
    upper = corner[0] + (corner[1] - corner[0]) * dx
    lower = corner[2] + (corner[3] - corner[2]) * dx
    return (upper + (lower - upper) * dy).to(torch.uint8).mul_(inside[:, None])


def resized_crop(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes a box of each image to `size` (height, width), antialiased by a triangle filter.

    Args:
        boxes: top, left, height and width of each box, in pixels: int64, (n, 4), or (1, 4) for all images.
    """
    top, left, tall, wide = boxes.T
    across = _weights(left, wide, images.shape[3], size[1]).to(images.device, non_blocking=True)
    down = _weights(top, tall, images.shape[2], size[0]).to(images.device, non_blocking=True)
    # These are integers below 2^53, in fp64, so that their sums are exact in any order.
    lines = _rounded(images.double() @ across.mT[:, None])
    return _rounded(down[:, None] @ lines).to(torch.uint8)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Changes the brightness of each image by its factor, (n,): 1 changes nothing, 0 makes the image black."""
    return _blend(torch.zeros((), device=images.device), images, factors)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Changes the saturation of each image by its factor, (n,): 1 changes nothing, 0 makes the image grey."""
    return images if images.shape[1] == 1 else _blend(_grey(images), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Changes the contrast of each image by its factor, (n,): 1 changes nothing, 0 makes every pixel the mean grey."""
    grey = _grey(images)
    count = grey[0].numel()
    mean = torch.div(2 * grey.sum(dim=(1, 2, 3), keepdim=True) + count, 2 * count, rounding_mode="floor")
    return _blend(mean, images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Changes the sharpness of each image by its factor, (n,): 1 changes nothing, 0 makes the image smooth."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    wide[:, :, 1:-1, 1:-1] = (total / 13).round()  # 13 is odd: no quotient is halfway between integers
    return _blend(wide, images, factors)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest `bits` bits, (n,), of each value of an image and makes the others 0."""
    masks = (256 - (1 << (8 - bits.long()))).to(torch.uint8)
    return images & _column(masks, images)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Inverts the values of each image that are not below its threshold, (n,)."""
    least = thresholds.ceil().clamp(0, 256).to(torch.int16)
    return torch.where(images < _column(least, images), images, 255 - images)


def invert(images: Tensor) -> Tensor:
    return 255 - images


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel's values to 0 to 255."""
    low, high = (bound.double() for bound in torch.aminmax(images.flatten(2), dim=2, keepdim=True))
    scale = torch.full_like(high, 255) / (high - low).clamp(min=1)  # torch would round 255 / tensor twice
    values = images.flatten(2).double()
    stretched = (values * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8).view_as(images)


def equalize(images: Tensor) -> Tensor:
    """Makes each channel's values equally frequent, as well as a function of the value can."""
    values = images.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values))
    last = counts.gather(1, values.amax(dim=1, keepdim=True))
    step = (values.shape[1] - last) // 255
    below = counts.cumsum(1) - counts
    table = torch.div(below + step // 2, step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device)).to(torch.uint8)
    return table.gather(1, values).view_as(images)


def _picked(images: Tensor, places: Tensor) -> Tensor:
    """Picks pixels of each image by their places.

    Args:
        places: row * W + column of each pixel of the result: int64, (n, height, width).
    """
    channels = images.shape[1]
    flat = places.flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, flat).view(len(images), channels, *places.shape[1:])


def _column(values: Tensor, images: Tensor) -> Tensor:
    """Moves a value for each image, (n,), to the images' device, as (n, 1, 1, 1), to compute with the images."""
    return values.to(images.device, non_blocking=True).view(-1, 1, 1, 1)


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Blends the degenerate images, at factor 0, with these, at 1, or extrapolates: in fp32, truncated to uint8."""
    ends, values = degenerate.float(), images.float()
    return (ends + (values - ends) * _column(factors.float(), images)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, dim=1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 2**15) >> 16


def _homographies(corners: Tensor, height: int, width: int) -> Tensor:
    """Computes the projective maps that take these corners to the image's: a to h of each, fp64, (n, 8).

    A map is (x, y) -> (ax + by + c, dx + ey + f) / (gx + hy + 1). It is the inverse of the map of the unit square to a
    quadrilateral, which has a closed form (Heckbert, 1989). The numbers are rounded to fp32, as in torchvision.
    """
    x, y = corners.unbind(2)
    x0, x1, x2, x3 = x.unbind(1)
    y0, y1, y2, y3 = y.unbind(1)
    px, py, qx, qy = x1 - x2, y1 - y2, x3 - x2, y3 - y2
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    area = px * qy - qx * py
    g, h = (sx * qy - qx * sy) / area, (px * sy - sx * py) / area
    a, b, c = x1 - x0 + g * x1, x3 - x0 + h * x3, x0
    d, e, f = y1 - y0 + g * y1, y3 - y0 + h * y3, y0
    last = a * e - b * d  # the last entry of the adjugate, by which the others are divided
    right, bottom = width - 1, height - 1
    rows = [
        *(right * (e - f * h), right * (c * h - b), right * (b * f - c * e)),
        *(bottom * (f * g - d), bottom * (a - c * g), bottom * (c * d - a * f)),
        *(d * h - e * g, b * g - a * h),
    ]
    return torch.stack([row / last for row in rows], 1).float().double()


def _weights(start: Tensor, length: Tensor, size: int, result: int) -> Tensor:
    """Computes the weight of each of `size` pixels in each of `result` pixels, along one side of the images.

    The box of an image begins at `start` and has this `length`, both int64, (n,).

    Returns:
        the weights in units of 2^-22, integers in fp64: (n, result, size).
    """
    start, length = start.double()[:, None, None], length.double()[:, None, None]
    scale = length / result
    stretch = scale.clamp(min=1)
    centers = (torch.arange(result, dtype=torch.float64)[:, None] + 0.5) * scale
    places = torch.arange(size, dtype=torch.float64) - start
    weights = (1 - ((places - centers + 0.5) * (1 / stretch)).abs()).clamp_(min=0)
    weights.masked_fill_((places < 0) | (places >= length), 0)
    weights /= weights.sum(dim=2, keepdim=True)
    return (weights * 2**PRECISION + 0.5).floor()


def _rounded(sums: Tensor) -> Tensor:
    """Rounds sums of pixels times weights to pixels from 0 to 255, in fp64."""
    return ((sums + 2 ** (PRECISION - 1)) * 2.0**-PRECISION).floor_().clamp_(0, 255)
