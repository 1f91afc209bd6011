"""Images of more than 8 bits and photographs that lie on their side, in files written byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookaround_ddp.data.reading import UnreadableImage, read_rgb
from tests.support.pictures import png, tiff

VALUES = (0, 128, 129, 257, 32767, 32768, 65534, 65535)  # of 16 bits
BYTES = [0, 0, 1, 1, 127, 128, 255, 255]  # value / 257, rounded
LITTLE, BIG = struct.pack("<8H", *VALUES), struct.pack(">8H", *VALUES)

GREYS = {  # a file -> what its pixels are in 8 bits
    "a PNG of 16 bits": (png(8, 1, 16, 0, b"\0" + BIG), BYTES),
    "a TIFF of 16 bits": (tiff("<", 16, LITTLE), BYTES),
    "a TIFF of 16 bits, big end first": (tiff(">", 16, BIG), BYTES),
    "a PGM of 16 bits": (b"P5 8 1 65535\n" + BIG, BYTES),
    "a PGM of 10 bits": (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 341, 1023), [0, 85, 255]),
    "a TIFF of 12 bits": (tiff("<", 12, bytes.fromhex("000555aaafff")), [0, 85, 170, 255]),
}


@pytest.mark.parametrize("name", GREYS)
def test_grey_values_of_more_than_8_bits_are_scaled(tmp_path: Path, name: str) -> None:
    content, expected = GREYS[name]
    (tmp_path / "image").write_bytes(content)
    image = read_rgb(str(tmp_path / "image"))
    assert (image.mode, image.size) == ("RGB", (len(expected), 1))
    assert np.asarray(image)[0].tolist() == [[each] * 3 for each in expected]


def test_colours_of_16_bits(tmp_path: Path) -> None:
    """PIL takes the upper 8 bits."""
    (tmp_path / "image").write_bytes(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 256, 511, 32768, 65280, 65535)))
    assert np.asarray(read_rgb(str(tmp_path / "image"))).tolist() == [[[0, 1, 1], [128, 255, 255]]]


REFUSED = {  # a file without a value for white -> what is said of it
    "floats": (tiff("<", 32, struct.pack("<2f", 0.0, 300.0), kind=3), "floats without a value for white"),
    "integers of 32 bits": (tiff("<", 32, struct.pack("<2I", 0, 300)), "integers of 32 bits without a value"),
    "signed": (tiff("<", 16, struct.pack("<2h", -5, 300), kind=2), "integers of 32 bits without a value for white"),
    "white is 0": (tiff("<", 16, LITTLE, black_is_zero=0), "of 16 bits whose 0 is white: save it with black as 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_scaled_without_a_guess_is_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(UnreadableImage) as raised:
        read_rgb(str(tmp_path / "image"))
    assert str(raised.value).startswith(f"{tmp_path}/image cannot be read ({message}")


# a picture a b c / d e f as a camera stores it with each of EXIF's orientations
STORED = {
    1: ("abc", "def"),
    2: ("cba", "fed"),
    3: ("fed", "cba"),
    4: ("def", "abc"),
    5: ("ad", "be", "cf"),
    6: ("cf", "be", "ad"),
    7: ("fc", "eb", "da"),
    8: ("da", "eb", "fc"),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_seen_upright(tmp_path: Path, orientation: int) -> None:
    stored = np.array([[ord(letter) for letter in row] for row in STORED[orientation]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("image.png", "image.tif"):
        Image.fromarray(stored).save(tmp_path / name, exif=exif)
        seen = np.asarray(read_rgb(str(tmp_path / name)))[:, :, 0]
        assert ["".join(map(chr, row)) for row in seen] == ["abc", "def"]


def test_exif_data_that_say_nothing_leave_the_image(tmp_path: Path) -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    odd = Image.Exif()
    odd[0x0112] = 9
    for exif in (odd, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense", b""):
        Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
        assert np.array_equal(np.asarray(read_rgb(str(tmp_path / "image.png")))[:, :, 0], pixels)
