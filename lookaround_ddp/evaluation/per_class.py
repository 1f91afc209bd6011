"""How often a finished run's model is right on each class, and what it takes the class for otherwise."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lookaround_ddp.checkpoint import member_files, members
from lookaround_ddp.config import Config
from lookaround_ddp.data import open_dataset
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation.evaluator import make_evaluator
from lookaround_ddp.evaluation.finished_runs import check_classes, shipped_model
from lookaround_ddp.files import write_atomically
from lookaround_ddp.models import placed
from lookaround_ddp.tables import print_table

MOST_SHOWN = 12  # of so many classes a terminal has room for the whole confusion matrix


@dataclass(frozen=True)
class PerClass:
    model: str  # whose guesses they are
    names: tuple[str, ...]
    confusion: Tensor  # int64, (classes, classes): images of the row's class that are taken for the column's

    @property
    def images(self) -> Tensor:
        """Returns the images of each class."""
        return self.confusion.sum(dim=1)

    @property
    def right(self) -> Tensor:
        return self.confusion.diagonal()

    def top1(self, number: int) -> float | None:
        """Returns the accuracy of a class in percent; None if there are no images of it."""
        images = int(self.images[number])
        return 100 * int(self.right[number]) / images if images else None


def per_class(run: Path, config: Config, world: World) -> PerClass:
    """Counts what the test images are taken for by what the run is judged by. Collective.

    That is the average along time where the run made one, else the mean model; of an ensemble the mean of the logits.

    Raises:
        UserError: the run has not finished; its model and the data have different numbers of classes.
    """
    with world.together():
        dataset = open_dataset(config.data, config.seed)
        if member_files(config):
            name, models = "mean of logits", [*members(config, world.device)]
        else:
            model, metadata = shipped_model(run, config)
            check_classes(run, metadata["classes"], dataset)
            name = (
                "mean model" if config.trajectory.name == "none" else f"average along time ({config.trajectory.name})"
            )
            models = [model]
    models = [placed(model, config.channels_last, world.device) for model in models]
    counts = make_evaluator(config, dataset, dataset.test, world).confusion(models)
    return PerClass(name, dataset.class_names or tuple(map(str, range(dataset.classes))), counts)


def show_classes(found: PerClass) -> None:
    """Prints a row for each class, and the confusion matrix if it is small."""
    wrong = found.confusion - torch.diag(found.right)
    rows = []
    for number, name in enumerate(found.names):
        top1, most = found.top1(number), int(wrong[number].argmax())
        taken = f"{found.names[most]} ({wrong[number, most]})" if wrong[number, most] else ""
        rows.append([name, str(int(found.images[number])), "-" if top1 is None else f"{top1:.2f}", taken])
    total = 100 * int(found.right.sum()) / int(found.images.sum())
    rows.append(["all", str(int(found.images.sum())), f"{total:.2f}", ""])
    print(f"{found.model}, test images")
    print_table(["class", "images", "top-1 %", "most often taken for"], rows, left=(0, 3))
    if len(found.names) <= MOST_SHOWN:
        print("images of the row's class that are taken for the column's")
        print_table(
            ["", *found.names], ([n, *map(str, r)] for n, r in zip(found.names, found.confusion.tolist(), strict=True))
        )


def write_classes(found: PerClass, path: Path) -> None:
    """Writes a .json or .csv with all counts.

    Raises:
        UserError: the file cannot be written.
    """
    matrix, top1 = found.confusion.tolist(), [found.top1(number) for number in range(len(found.names))]
    images, right = found.images.tolist(), found.right.tolist()
    if path.suffix == ".json":
        values = {"model": found.model, "classes": found.names, "images": images, "right": right, "top1": top1}
        text = json.dumps({**values, "confusion": matrix}, indent=1, ensure_ascii=False)
    else:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "images", "right", "top1", *(f"taken for {name}" for name in found.names)])
        for row in zip(found.names, images, right, top1, matrix, strict=True):
            writer.writerow([*row[:4], *row[4]])
        text = file.getvalue()
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
