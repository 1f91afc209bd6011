"""A classifier of single images, from a model file alone: neither the run's folder nor its data are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from lookaround_ddp.checkpoint import load_model, load_state
from lookaround_ddp.config import make_config
from lookaround_ddp.data import central_square
from lookaround_ddp.errors import UserError
from lookaround_ddp.models import Normalize, empty_model


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode, with how it is shown images, and the names of its classes."""

    network: nn.Module
    mode: str  # of the images that it sees, as PIL calls it
    transform: Callable[[Image.Image], Tensor]  # -> uint8 (C, size, size)
    normalize: Normalize
    class_names: tuple[str, ...]

    @torch.no_grad()
    def logits(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns the logits of images of any size and mode: fp32, (images, classes)."""
        shown = torch.stack([self.transform(image.convert(self.mode)) for image in images])
        logits: Tensor = self.network(self.normalize(shown))
        return logits.float().cpu()


def read_classifier(path: Path, device: torch.device | None = None) -> Classifier:
    """Reads a classifier from a file that a run ships, such as `model.safetensors`, onto a device (None: the CPU).

    Raises:
        UserError: there is no such file, it is damaged, or it was written before files held what it takes.
    """
    state, metadata = load_model(path)
    device = device or torch.device("cpu")
    try:
        config = make_config(metadata["config"])
        transform = central_square(metadata["size"], metadata["channels"], metadata["crop"], metadata["interpolation"])
        normalize = Normalize(metadata["mean"], metadata["std"], device, config.channels_last)
        names = tuple(map(str, metadata["class_names"]))
    except KeyError as error:
        raise UserError(
            f"{path} does not say how its network is shown images (it has no {error}): it was written by an older "
            "version of this package; `evaluate` can read it, with the run's data"
        ) from None
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} is not a model of this package: {error}") from None
    network = empty_model(config.model, metadata["classes"], metadata["channels"])
    load_state(network, state, config.model, str(path))
    mode = "L" if metadata["channels"] == 1 else "RGB"
    return Classifier(network.to(device).eval(), mode, transform, normalize, names)
