"""What a trained model is for: `predict` and `export`."""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lookaround_ddp.cli.arguments import named_config
from lookaround_ddp.distributed import join
from lookaround_ddp.errors import FAILED, UserError
from lookaround_ddp.files import write_atomically
from lookaround_ddp.tables import print_table

Row = tuple[Path, list[tuple[str, float]]]  # a file, and the most probable classes, from the first down

WIDE = 10**5  # a table is not cut off at the terminal's edge: file names stay whole


def predict(options: argparse.Namespace) -> None:
    """Prints the most probable classes of images, or writes them as CSV.

    A file that cannot be read is a line on standard error; the others go on, and the status is 1 in the end.
    """
    file = model_file(options.model, options.trust)
    if options.csv is not None and not options.csv.parent.is_dir():
        raise UserError(f"--csv {options.csv}: there is no folder {options.csv.parent}")

    from lookaround_ddp.evaluation import image_files, predictions, read_classifier

    complaints: list[str] = []

    def complain(text: str) -> None:
        complaints.append(text)
        print(f"warning: {_printable(text)}", file=sys.stderr, flush=True)

    classifier = read_classifier(file, options.trust)
    with join(classifier.config.model_copy(update={"replicas": classifier.config.replicas[:1]})) as world:
        if not world.main:
            return
        names, rows = classifier.class_names, list[Row]()
        images = image_files(options.images, complain)
        for path, probabilities in predictions(classifier.on(world.device), images, options.batch_size, complain):
            best = probabilities.topk(min(options.top, len(names)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows.append((path, [(names[number], value) for number, value in found]))
    if options.csv is not None:
        write_atomically(options.csv, _as_csv(rows, min(options.top, len(names))))
    elif rows:
        _show(rows)
    if complaints:
        sys.exit(FAILED)


def export(options: argparse.Namespace) -> None:
    """Writes a trained model in the form that other programs read."""
    if options.timm is None and options.onnx is None:
        raise UserError("export as what? Give --timm DIR or --onnx FILE")
    file = model_file(options.model, options.trust)

    from lookaround_ddp.evaluation import export_onnx, export_timm, read_classifier

    classifier = read_classifier(file, options.trust)
    if options.timm is not None:
        export_timm(classifier, file, options.timm)
        print(f"{options.timm}: timm.create_model({f'local-dir:{options.timm}'!r}, pretrained=True)")
    if options.onnx is not None:
        export_onnx(classifier, options.onnx)
        size, channels = classifier.metadata["size"], classifier.metadata["channels"]
        print(f"{options.onnx}: images (batch, {channels}, {size}, {size}), normalized -> logits; see its metadata")


def model_file(named: Path, trust: bool) -> Path:
    """Returns the file of weights that a path names: itself, or that which the run in this folder ships.

    Raises:
        UserError: there is no such file; it is no run's folder; the run has not finished, or ships several models.
    """
    if not named.exists():
        raise UserError(f"there is no {named}: name a model.safetensors, or the folder of a finished run")
    if not named.is_dir():
        return named
    config = named_config(named, [], trust)

    from lookaround_ddp.evaluation import shipped_file

    return shipped_file(named, config)


def _show(rows: Sequence[Row]) -> None:
    many = len(rows[0][1])
    headings = ["file", *(heading for _ in range(many) for heading in ("class", "probability"))]
    cells = ([_printable(str(path)), *_cells(found, "{:.4f}")] for path, found in rows)
    print_table(headings, cells, left=(0, *range(1, 2 * many, 2)), width=WIDE)


def _as_csv(rows: Iterable[Row], many: int) -> bytes:
    """Returns a line for each file, after one with headings; names of files keep their bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *(f"{what}_{rank + 1}" for rank in range(many) for what in ("class", "probability"))])
    writer.writerows([str(path), *_cells(found, "{:.6g}")] for path, found in rows)
    return os.fsencode(text.getvalue())


def _cells(found: Iterable[tuple[str, float]], form: str) -> list[str]:
    return [cell for name, value in found for cell in (name, form.format(value))]


def _printable(name: str) -> str:
    """Returns a file's name without what a terminal cannot show."""
    return os.fsencode(name).decode(errors="replace")
