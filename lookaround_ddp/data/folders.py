"""Images in a folder for each class, to train on and to validate by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from lookaround_ddp.data.images import Files
from lookaround_ddp.errors import UserError

Samples = list[tuple[str, int]]  # files and their labels


def class_folders(root: Path, allow_missing: bool) -> tuple[Files, Files, tuple[str, ...]]:
    """Returns the images of `root`/train/CLASS/ and of `root`/val/CLASS/, and the names of the classes.

    The classes of both are numbered in the order of their names. What begins with a dot is neither a class nor an
    image.

    Args:
        allow_missing: one of the two may have no images of a class that the other has.

    Raises:
        UserError: there are no images, or none of a class.
    """
    sides = {name: root / name for name in ("train", "val")}
    names = sorted(set().union(*(_classes(path, root) for path in sides.values())))
    numbers = {name: number for number, name in enumerate(names)}
    samples = {name: _samples(path, numbers, root) for name, path in sides.items()}
    for side, found in samples.items():
        lacking = sorted(set(names) - {names[label] for _, label in found})
        if lacking and not allow_missing:
            raise UserError(
                f"{sides[side]} has images of {len(names) - len(lacking)} of {len(names)} classes, and none of "
                f"{lacking[0]!r}: add some, or go on with data.missing_class=allow"
            )
    train, val = (Files([path for path, _ in found], [label for _, label in found]) for found in samples.values())
    return train, val, tuple(names)


def images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder and in those below it, in the order of their names.

    They are told by the ends of their names; what begins with a dot is left out, as by `class_folders`.
    """
    found = (Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if path.suffix.lower() in IMG_EXTENSIONS and not _hidden(path, folder))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _classes(path: Path, root: Path) -> set[str]:
    try:
        return {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    except OSError as error:
        raise _no_images(path, root, error.strerror) from None


def _samples(path: Path, numbers: Mapping[str, int], root: Path) -> Samples:
    found = ImageFolder.make_dataset(str(path), dict(numbers), extensions=IMG_EXTENSIONS, allow_empty=True)
    samples = [(name, label) for name, label in found if not _hidden(Path(name), path)]
    if not samples:
        raise _no_images(path, root, f"images end in {', '.join(IMG_EXTENSIONS)}")
    return samples


def _no_images(path: Path, root: Path, reason: str | None) -> UserError:
    return UserError(f"no images in {path}: imagefolder reads {root}/train/CLASS/ and /val/CLASS/ ({reason})")
