"""`predict` and `export` on the command line."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookaround_ddp.cli import main
from lookaround_ddp.data import read_rgb
from lookaround_ddp.evaluation import read_classifier
from tests.support.classifiers import model_file
from tests.support.pictures import png, truncated


@pytest.fixture
def file(tmp_path: Path) -> Path:
    names = ["ant", "[red]bee", "cat"]
    return model_file(tmp_path / "m.safetensors", "model.width=4", class_names=names)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Photographs of different sizes, one of 16 bits and one that is to be turned upright; files that are none."""
    folder, draws = tmp_path / "pictures", np.random.default_rng(0)
    (folder / "more" / ".thumbnails").mkdir(parents=True)
    pixels = draws.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "b.png")
    Image.fromarray(pixels[:, :20]).save(folder / "more" / "a.JPG")
    Image.fromarray(pixels).save(folder / "more" / ".thumbnails" / "t.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    rows = b"".join(b"\0" + row.tobytes() for row in draws.integers(0, 2**16, (30, 30)).astype(">u2"))
    (folder / "sixteen.png").write_bytes(png(30, 30, bits=16, colour=0, data=rows))
    (folder / "notes.txt").touch()
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path, expect: int = 0) -> tuple[list[str], list[str]]:
    """The lines on standard output, without those that are empty or rules, and those on standard error."""
    try:
        main([str(each) for each in arguments])
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    assert status == expect, err
    return [line.strip() for line in out.splitlines() if line.strip(" ─")], err.splitlines()


def test_predictions_are_the_classifiers(
    file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = [pictures / name for name in ("b.png", "more/a.JPG", "sixteen.png", "turned.png")]
    classifier = read_classifier(file)
    images = [read_rgb(str(path)) for path in [*inside, inside[0]]]
    probabilities = classifier.logits(images).double().softmax(dim=1).numpy()
    best = (-probabilities).argsort(axis=1)
    right = [
        [
            str(path),
            classifier.class_names[first],
            f"{row[first]:.4f}",
            classifier.class_names[then],
            f"{row[then]:.4f}",
        ]
        for path, row, (first, then, _) in zip([*inside, inside[0]], probabilities, best, strict=True)
    ]
    # an option may stand among the images; a file may be named beside the folder that it is in
    table, complaints = said(capsys, "predict", file, pictures, "--top", "2", inside[0])
    assert table[0].split() == ["file", "class", "probability", "class", "probability"]
    assert [line.split() for line in table[1:]] == right
    assert complaints == []
    table, _ = said(capsys, "predict", file, *inside)
    assert [line.split() for line in table[1:]] == [row[:3] for row in right[:-1]]

    out = tmp_path / "found.csv"
    assert said(capsys, "predict", file, *inside, "--csv", out, "--top=99") == ([], [])
    with out.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["file"] for row in rows] == list(map(str, inside))
    for row, own, order in zip(rows, probabilities, best, strict=False):
        for rank, number in enumerate(order, 1):
            assert row[f"class_{rank}"] == classifier.class_names[number]
            assert float(row[f"probability_{rank}"]) == pytest.approx(own[number], rel=1e-5)
        assert len(row) == 7


def test_what_cannot_be_read_is_a_line_and_the_others_go_on(
    file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncated(pictures / "b.png")
    (tmp_path / "empty").mkdir()
    odd = os.fsdecode(b"\xff.png")
    (pictures / "turned.png").rename(pictures / odd)
    out = tmp_path / "found.csv"
    named = [pictures / "gone.png", pictures / "b.png", tmp_path / "empty", pictures / "notes.txt", pictures / odd]
    table, complaints = said(capsys, "predict", file, *named, "--batch-size=2", expect=1)
    assert [line.split()[0] for line in table[1:]] == [f"{pictures}/\ufffd.png"]
    assert complaints == [
        f"warning: {tmp_path}/empty has no images in it",
        f"warning: {pictures}/gone.png cannot be read (No such file or directory)",
        f"warning: {pictures}/b.png cannot be read (image file is truncated)",
        f"warning: {pictures}/notes.txt cannot be read (not an image)",
    ]
    said(capsys, "predict", file, pictures / odd, "--csv", out)
    assert os.fsencode(pictures / odd) in out.read_bytes()
    assert said(capsys, "predict", file, pictures / "gone.png", expect=1)[0] == []


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["predict", "nowhere.safetensors", "a.png"], "there is no nowhere.safetensors"),
        (["predict", "{folder}", "a.png"], "{folder} is not a run folder: there is no config.yaml in it"),
        (["predict", "{file}"], "the following arguments are required: IMAGE"),
        (["predict", "{file}", "a.png", "--top=0"], "argument --top: '0' is no number such as 1, 2 or 3"),
        (["predict", "{file}", "a.png", "--csv={folder}/none/a.csv"], "there is no folder {folder}/none"),
        (["export", "{file}"], "export as what? Give --timm DIR or --onnx FILE"),
        (["export", "{file}", "--timm={folder}/new"], "timm has no network resnet8"),
    ],
)
def test_mistakes(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], mistake: str
) -> None:
    given = [each.format(file=file, folder=tmp_path) for each in arguments]
    out, err = said(capsys, *given, expect=2)
    assert out == []
    assert len(err) == 1
    assert mistake.format(folder=tmp_path) in err[0]
