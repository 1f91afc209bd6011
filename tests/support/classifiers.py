"""Model files of networks that nobody has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lookaround_ddp.checkpoint import save_model
from lookaround_ddp.config.load import load_config
from lookaround_ddp.models import create_model


def model_file(path: Path, *values: str, **described: Any) -> Path:
    """Writes the file of a network with weights that a seed draws, with batch statistics of its own.

    Args:
        values: of its config.
        described: what is to replace what the file says of its images: 32 px, three classes.
    """
    own = {"classes": 3, "class_names": ["ant", "bee", "cat"], "channels": 3, "size": 32, "crop": 0.875}
    own |= {"interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], **described}
    config = load_config(None, values)
    torch.manual_seed(5)
    model = create_model(config.model, own["classes"], own["channels"])
    model(torch.randn(8, own["channels"], own["size"], own["size"]))  # batch-norm's statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(path, model.state_dict(), own | {"config": config.identity()})
    return path
