"""A classifier in the forms that other programs read: a folder of timm's, and ONNX."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lookaround_ddp.checkpoint import MODEL
from lookaround_ddp.errors import UserError, told
from lookaround_ddp.evaluation.classifier import Classifier
from lookaround_ddp.files import write_atomically

# what timm must know of a network to load weights into it, of what it knows of those that it publishes
OF_NETWORK = ("architecture", "first_conv", "classifier", "fixed_input_size")


def export_timm(classifier: Classifier, file: Path, folder: Path) -> None:
    """Writes a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, whole or not at all.

    Args:
        file: the classifier's, which goes into the folder as it is.

    Raises:
        UserError: the network is none of timm's; the folder is there already; timm does not load the same weights.
    """
    model = classifier.config.model
    if not model.name.startswith("timm:"):
        raise UserError(
            f"timm has no network {model.name}, it is this package's own: use --onnx, or load the weights with "
            "lookaround_ddp.models.create_model"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already: give another --timm")
    from timm.models import save_for_hf

    metadata = classifier.metadata
    network: Any = classifier.network
    network.pretrained_cfg = {key: network.pretrained_cfg.get(key) for key in OF_NETWORK} | {
        "num_classes": metadata["classes"],
        "input_size": (metadata["channels"], metadata["size"], metadata["size"]),
        "crop_pct": crop_for_timm(metadata["size"], metadata["crop"]),
        "crop_mode": "center",
        **{key: metadata[key] for key in ("interpolation", "mean", "std")},
    }
    built = {key: value for key, value in model.options.items() if not key.startswith("pretrained_cfg")}
    arguments = built | {"in_chans": metadata["channels"]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".writing-{folder.name}-", dir=folder.parent) as name:
        made = Path(name) / "folder"
        labels = {"label_names": list(classifier.class_names)}
        save_for_hf(
            network.to(memory_format=torch.contiguous_format), str(made), labels, arguments, safe_serialization=True
        )
        shutil.copyfile(file, made / MODEL)
        check_timm(classifier, made)
        made.rename(folder)


def check_timm(classifier: Classifier, folder: Path) -> None:
    """Raises UserError unless timm makes the same network of the folder, bit for bit."""
    import timm

    name, own = classifier.config.model.name, classifier.network.state_dict()
    try:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    except Exception as error:  # of whatever kind: other versions of timm raise others
        raise UserError(f"timm cannot load {name} again: {told(error)}") from None
    differing = [key for key in own if key not in loaded or not torch.equal(own[key].cpu(), loaded[key])]
    if differing or loaded.keys() != own.keys():
        raise UserError(f"timm makes another network of {name} than was trained ({(differing or ['more'])[0]})")


def crop_for_timm(size: int, crop: float) -> float:
    """Returns timm's `crop_pct` for the same pixels: it rounds the size before the crop down, where we round."""
    resized = round(size / crop)
    share = size / resized
    while math.floor(size / share) < resized:
        share = math.nextafter(share, 0.0)
    return share


def export_onnx(classifier: Classifier, file: Path) -> None:
    """Writes an ONNX file: normalized images, fp32 (batch, C, size, size) -> logits, fp32 (batch, classes).

    Its metadata have what `described` says of a dataset, as JSON by key: class_names, mean, std, size, crop and so on.

    Raises:
        UserError: what writes ONNX is not installed, or cannot write this network.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {' and '.join(missing)}: pip install 'lookaround_ddp[onnx]'")
    metadata = classifier.metadata
    example = torch.zeros(2, metadata["channels"], metadata["size"], metadata["size"])
    try:
        program: Any = torch.onnx.export(
            classifier.network,
            (example,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
        content = program.model_proto.SerializeToString()
    except Exception as error:  # of whatever kind: each network and version has its own
        raise UserError(f"torch cannot write {classifier.config.model.name} as ONNX: {told(error)}") from None
    write_atomically(file, content)
