"""Augmentations that a config names by a dotted path: somebody's own code, which not every command may run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lookaround_ddp.errors import UserError

# What becomes of a dotted path and its arguments: one of the three functions below.
Code = Callable[[str, dict[str, Any]], Callable[[Any], Any]]


KNOWN = ("torchvision.transforms", "torchvision.transforms.v2")  # the classes of these are nobody's own


def imported(path: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Imports the class of that dotted path and makes an instance, or imports a function and binds the arguments.

    Raises:
        UserError: there is no such class or function.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"augmentation {path}: {error}") from None
    return found(**arguments) if isinstance(found, type) else partial(found, **arguments)


def refused(path: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Raises UserError, unless the path is of a known class: for commands that only read what somebody trained."""
    if _is_known(path):
        return imported(path, arguments)
    raise UserError(
        f"augmentation {path} of the run is somebody's own code, and was not run: give --trust if you know whose it is"
    )


def left_out(path: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Returns what changes no image, unless the path is of a known class: for looking at a config before training."""
    return imported(path, arguments) if _is_known(path) else _unchanged


def _is_known(path: str) -> bool:
    module, _, name = path.rpartition(".")
    if module not in KNOWN:
        return False
    found = getattr(importlib.import_module(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def _unchanged(image: Any) -> Any:
    return image
