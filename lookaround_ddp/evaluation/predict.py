"""What a classifier sees in files of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lookaround_ddp.data import UnreadableImage, images_in, read_rgb
from lookaround_ddp.evaluation.classifier import Classifier

Complain = Callable[[str], None]  # is told in a line what cannot be read


def image_files(named: Sequence[Path], complain: Complain) -> list[Path]:
    """Returns the named files, and those of the named folders, in this order; complains of a folder without images."""
    files: list[Path] = []
    for path in named:
        found = images_in(path) if path.is_dir() else [path]
        if not found:
            complain(f"{path} has no images in it")
        files += found
    return files


def predictions(
    classifier: Classifier, files: Sequence[Path], batch_size: int, complain: Complain
) -> Iterator[tuple[Path, Tensor]]:
    """Yields each file with the probabilities of the classes, fp64, shape (classes,).

    The images are read as those of a training are. A file that cannot be read is left out, and complained of.
    """
    for first in range(0, len(files), batch_size):
        read: list[Path] = []
        shown: list[Tensor] = []
        for file in files[first : first + batch_size]:
            try:
                shown.append(classifier.shown(read_rgb(str(file))))
            except UnreadableImage as error:
                complain(f"{error.path} cannot be read ({error.reason})")
            else:
                read.append(file)
        if read:
            yield from zip(read, classifier.logits_of(torch.stack(shown)).double().softmax(dim=1), strict=True)
