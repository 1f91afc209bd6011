"""Trained networks as files: a plain state dict, with what is needed to build the network in the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lookaround_ddp.config import ModelConfig
from lookaround_ddp.errors import UserError
from lookaround_ddp.files import regular, write_atomically
from lookaround_ddp.models import empty_model

METADATA = "lookaround_ddp"  # one key alone: safetensors writes several in random order, and the file would differ


def save_model(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a state dict as safetensors, with JSON-able metadata, atomically."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()
    }  # tied tensors become copies
    write_atomically(path, save(tensors, metadata={METADATA: json.dumps(metadata, sort_keys=True)}))


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a file that `save_model` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _read(path, lambda file: {})[1]


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the state dict and the metadata of a file that `save_model` wrote.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return _read(path, load_file)


def _read(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(regular(path), "pt") as file:
            metadata = json.loads(file.metadata()[METADATA])
        if not (isinstance(metadata, dict) and all(_is_count(metadata[key]) for key in ("classes", "channels"))):
            raise ValueError("its metadata are of something else")
        return read(path), metadata
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: the run has not finished; the same train command goes on with it"
        ) from None
    except Exception as error:  # safetensors' own exception type, a missing key, bad JSON: all mean the same
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path} is not a model of this package: {reason}") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 10**7  # of classes: more would fill the memory, whatever the file is


def read_network(path: Path, config: ModelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network of such a file on the CPU; returns it with the file's metadata.

    Raises:
        UserError: there is no such file, it is damaged, or its weights are of another network.
    """
    state, metadata = load_model(path)
    model = empty_model(config, metadata["classes"], metadata["channels"])
    load_state(model, state, config, str(path))
    return model, metadata


def load_state(model: nn.Module, state: dict[str, Tensor], config: ModelConfig, name: str) -> None:
    """Loads a state dict, which is that of `name`, into a network; raises UserError if it is of another network."""
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{name} does not fit {config.name}: {' '.join(str(error).split())[:200]}") from None
