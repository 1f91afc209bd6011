"""A classifier of single images, from a model file alone: neither the run's folder nor its data are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from lookaround_ddp.checkpoint import load_model, load_state
from lookaround_ddp.config import Config, ListOf, Section, make_config, validated
from lookaround_ddp.data import central_square
from lookaround_ddp.errors import UserError
from lookaround_ddp.models import Normalize, autocast, empty_model, placed
from lookaround_ddp.own_code import is_path, refuse


class Shown(Section):
    """What a file says of the images that its network is shown; see `data.described`."""

    classes: int
    class_names: ListOf[str]
    channels: Literal[1, 3]
    size: int = Field(ge=1, le=2**14)
    crop: float = Field(gt=0.01, le=1)
    interpolation: str
    mean: ListOf[Annotated[float, Field(ge=0, le=1)]]
    std: ListOf[Annotated[float, Field(ge=1e-4, le=1)]]


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode, with how it is shown images, and the names of its classes."""

    network: nn.Module
    config: Config  # of the run that it comes from
    metadata: dict[str, Any]  # what else its file says: see `data.described`
    mode: str  # of the images that it sees, as PIL calls it
    transform: Callable[[Image.Image], Tensor]  # -> uint8 (C, size, size)
    normalize: Normalize
    class_names: tuple[str, ...]

    def on(self, device: torch.device) -> Classifier:
        """Returns the classifier on a device, to which its network moves."""
        normalize = Normalize(self.metadata["mean"], self.metadata["std"], device, self.config.channels_last)
        return replace(self, network=self.network.to(device), normalize=normalize)

    def shown(self, image: Image.Image) -> Tensor:
        """Returns what the network is shown of an image of any size and mode: uint8 (C, size, size)."""
        return self.transform(image.convert(self.mode))

    @torch.no_grad()
    def logits_of(self, shown: Tensor) -> Tensor:
        """Returns the logits of a batch of what is `shown`: fp32, (images, classes), on the CPU.

        They are computed as `evaluate` does, of as many images to the last bit.
        """
        with autocast(self.config.precision, self.normalize.device):
            logits: Tensor = self.network(self.normalize(shown))
        return logits.float().cpu()

    def logits(self, images: Sequence[Image.Image]) -> Tensor:
        """Returns the logits of images of any size and mode: fp32, (images, classes)."""
        return self.logits_of(torch.stack([self.shown(image) for image in images]))


def read_classifier(path: Path, trust: bool = False) -> Classifier:
    """Reads a classifier from a file that a run ships, such as `model.safetensors`, onto the CPU.

    Args:
        trust: import a network of somebody's own, which the file names.

    Raises:
        UserError: there is no such file, it is damaged, or it was written before files held what it takes; or its
            network is somebody's own, and not trusted.
    """
    state, metadata = load_model(path)
    cpu = torch.device("cpu")
    try:
        config = make_config(metadata["config"])
        shown = validated(Shown, {key: metadata[key] for key in Shown.model_fields})
        if (len(shown.class_names), len(shown.mean), len(shown.std)) != (shown.classes, shown.channels, shown.channels):
            raise ValueError("it has another number of class names, means or standard deviations than it says")
        transform = central_square(shown.size, shown.channels, shown.crop, shown.interpolation)
        normalize = Normalize(shown.mean, shown.std, cpu, config.channels_last)
    except KeyError as error:
        raise UserError(
            f"{path} does not say how its network is shown images (it has no {error}): it was written by an older "
            "version of this package; `evaluate` can read it, with the run's data"
        ) from None
    except (UserError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path} is not a model of this package: {error}") from None
    if not trust:
        refuse([("model", config.model.name)] if is_path(config.model.name) else [])
    network = empty_model(config.model, metadata["classes"], metadata["channels"])
    load_state(network, state, config.model, str(path))
    network = placed(network, config.channels_last, cpu).eval()
    mode = "L" if metadata["channels"] == 1 else "RGB"
    return Classifier(network, config, metadata, mode, transform, normalize, shown.class_names)
