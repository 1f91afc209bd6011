"""Reading a file that may be an image: as RGB of 8 bits, upright, or with the reason why not."""

from __future__ import annotations

import errno
import os
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lookaround_ddp.errors import UserError, shortened

# An image may be at most so many times as long as wide: a longer one in a small file would be huge when resized.
SLIMMEST = 1000


# Errors of the machine: the file that happens to be opened has no fault, and other ranks may be able to read it.
MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


DEEP_MODES = {"I": "integers of 32 bits", "F": "floats"}  # PIL's modes


OF_16_BITS = ("PNG", "PPM")  # formats whose values PIL scales to 16 bits, also where it calls them integers of 32


BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value


TURNS = {  # EXIF's orientations -> what makes them upright, as `PIL.ImageOps.exif_transpose` does
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(UserError):
    """A file is no image that can be trained on."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path} cannot be read ({reason}): mend it, or train past such files with data.on_corrupt=skip"
        )


def read_rgb(path: str) -> Image.Image:
    """Reads the image in a file, upright, and converts it to RGB of 8 bits.

    The orientation in its EXIF data is applied: whoever looks at a photograph sees it so. Grey values of more than 8
    bits are scaled, white to 255 (of colours PIL takes the upper 8 bits); where nothing says which value is white, the
    image is refused.

    Raises:
        UnreadableImage: it is not there, truncated, of another kind, or so large that PIL warns of it.
        UserError: the machine has run out of memory or of open files.
    """
    try:
        with warnings.catch_warnings(), open(path, "rb", opener=_without_waiting) as file:
            warnings.simplefilter("ignore")  # PIL's warnings do not name the file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format == "EPS":
                    raise UnreadableImage(path, "PostScript is a program")  # PIL would let Ghostscript run it
                if max(image.size) > SLIMMEST * min(image.size):
                    raise UnreadableImage(path, f"{image.width} x {image.height} pixels")
                image.load()
                return _upright(_of_8_bits(image, path).convert("RGB"), image)
    except UserError:
        raise
    except Exception as error:  # on a broken file PIL's readers may raise any exception
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE:
            raise UserError(f"{path} cannot be read now: {_reason(error)}") from None
        raise UnreadableImage(path, _reason(error)) from None


def _of_8_bits(image: Image.Image, path: str) -> Image.Image:
    """Scales grey values of more than 8 bits, which PIL's `convert` would cut off at 255, and rounds them.

    Raises:
        UnreadableImage: the file does not say how large the values may be, as of floats.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    if image.mode == "F" or (image.mode == "I" and image.format not in OF_16_BITS):
        raise UnreadableImage(path, f"{DEEP_MODES[image.mode]} without a value for white: save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        raise UnreadableImage(path, "of 16 bits whose 0 is white: save it with black as 0")
    white = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    values = np.asarray(image, np.float64)
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _upright(shown: Image.Image, file: Image.Image) -> Image.Image:
    """Turns an image as the file's EXIF data say that it is to be seen; where they are damaged it stays as it is.

    Of a TIFF PIL has done so.
    """
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # its readers may raise any exception
        return shown
    return shown.transpose(TURNS[orientation]) if orientation in TURNS else shown


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file so that a pipe that nobody writes into counts as empty; otherwise its reader would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shortened(" ".join(str(error).split()) or type(error).__name__)
