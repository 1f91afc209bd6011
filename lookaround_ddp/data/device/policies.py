"""RandAugment and AutoAugment of a batch, in which each image has its own operations and magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torchvision import transforms as T

from lookaround_ddp.data.device import ops
from lookaround_ddp.data.draws import Draws

Operation = Callable[[Tensor, Tensor], Tensor]  # takes images and their magnitudes, in torchvision's units


GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")  # `affine` does all of them at once


OPERATIONS: Mapping[str, Operation] = {
    "Brightness": lambda images, magnitudes: ops.brightness(images, 1.0 + magnitudes),
    "Color": lambda images, magnitudes: ops.color(images, 1.0 + magnitudes),
    "Contrast": lambda images, magnitudes: ops.contrast(images, 1.0 + magnitudes),
    "Sharpness": lambda images, magnitudes: ops.sharpness(images, 1.0 + magnitudes),
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "AutoContrast": lambda images, _: ops.autocontrast(images),
    "Equalize": lambda images, _: ops.equalize(images),
    "Invert": lambda images, _: ops.invert(images),
}


POLICY_OPERATIONS = ("Identity", *GEOMETRY, *OPERATIONS)


CODES = {name: code for code, name in enumerate(POLICY_OPERATIONS)}


def randaugment(transform: T.RandAugment) -> Callable[[Tensor, Draws], Tensor]:
    @lru_cache
    def space(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the code and the magnitude of each operation that may be drawn, and whether that has a sign: (k,)."""
        found = transform._augmentation_space(transform.num_magnitude_bins, (height, width))
        magnitudes = [each[transform.magnitude].item() if each.dim() else 0.0 for each, _ in found.values()]
        signed = [signed for _, signed in found.values()]
        return _codes(found), torch.tensor(magnitudes, dtype=torch.float64), torch.tensor(signed)

    def step(images: Tensor, draws: Draws) -> Tensor:
        codes, magnitudes, signed = space(*images.shape[2:])
        for _ in range(transform.num_ops):
            number, negative = draws.integers(len(codes), 2).T
            signs = 1.0 - 2.0 * (negative.bool() & signed[number])
            images = applied(images, codes[number], magnitudes[number] * signs)
        return images

    return step


def autoaugment(transform: T.AutoAugment) -> Callable[[Tensor, Draws], Tensor]:
    @lru_cache
    def space(height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns codes, probabilities and magnitudes of each policy's two operations, and whether these have signs.

        Each is a tensor (policies, 2).
        """
        found = transform._augmentation_space(10, (height, width))
        codes = torch.stack([_codes([name for name, _, _ in policy]) for policy in transform.policies])
        probabilities = [[probability for _, probability, _ in policy] for policy in transform.policies]
        magnitudes = [
            [0.0 if level is None else found[name][0][level].item() for name, _, level in policy]
            for policy in transform.policies
        ]
        signed = [[found[name][1] for name, _, _ in policy] for policy in transform.policies]
        wide = torch.float64
        return (
            codes,
            torch.tensor(probabilities, dtype=wide),
            torch.tensor(magnitudes, dtype=wide),
            torch.tensor(signed),
        )

    def step(images: Tensor, draws: Draws) -> Tensor:
        codes, probabilities, magnitudes, signed = space(*images.shape[2:])
        policy = draws.integers(len(codes))[:, 0]
        skipped, negative = draws.uniform(2) > probabilities[policy], draws.integers(2, 2) == 0
        code = codes[policy].masked_fill(skipped, CODES["Identity"])
        magnitude = magnitudes[policy] * (1.0 - 2.0 * (negative & signed[policy]))
        for place in range(2):
            images = applied(images, code[:, place], magnitude[:, place])
        return images

    return step


def applied(images: Tensor, codes: Tensor, magnitudes: Tensor) -> Tensor:
    """Applies to each image an operation of its own, with its magnitude; may write over the images that it is given.

    Args:
        codes: the operations, as places in POLICY_OPERATIONS: int64, (n,), on the CPU: nothing waits.
        magnitudes: in torchvision's units: fp64, (n,), on the CPU.
    """
    moved = ((codes >= CODES[GEOMETRY[0]]) & (codes <= CODES[GEOMETRY[-1]])).nonzero()[:, 0]
    matrices = _matrices(codes[moved], magnitudes[moved], *images.shape[2:])
    images = changed(images, moved, ops.affine, matrices)
    for name, operation in OPERATIONS.items():
        chosen = (codes == CODES[name]).nonzero()[:, 0]
        images = changed(images, chosen, operation, magnitudes[chosen])
    return images


def changed(images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Replaces the images at the chosen places by change(those images, *arguments); returns all images.

    It writes over the given images, unless all or none are chosen.

    Args:
        chosen: places in the batch: int64, (m,), on the CPU.
    """
    if len(chosen) == 0:
        return images
    if len(chosen) == len(images):
        return change(images, *arguments)
    places = chosen.to(images.device, non_blocking=True)
    return images.index_copy_(0, places, change(images.index_select(0, places), *arguments))


def _codes(names: Mapping[str, object] | list[str]) -> Tensor:
    return torch.tensor([CODES[name] for name in names])


def _matrices(codes: Tensor, magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Makes the matrices, for `affine`, of operations of GEOMETRY, given by code and magnitude: fp64, (n, 6)."""
    matrices = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64).repeat(len(codes), 1)
    for name, entry in (("ShearX", 1), ("ShearY", 3), ("TranslateX", 2), ("TranslateY", 5)):
        own = codes == CODES[name]
        value = -magnitudes.trunc() if name.startswith("Translate") else magnitudes
        matrices[own, entry] = value[own]
    turned = codes == CODES["Rotate"]
    matrices[turned] = ops.rotation(magnitudes[turned], height, width)
    return matrices
