"""The JPEG files of `bench data`, and what torchvision's way makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.io import decode_image

from lookaround_ddp.bench.jpegs import Decoded, write_jpegs
from lookaround_ddp.data.reading import read_rgb


def test_files_and_their_pixels(tmp_path: Path) -> None:
    paths = write_jpegs(tmp_path, 3)
    for path in paths:
        assert read_rgb(str(path)).size == (500, 375)
        assert 50_000 < path.stat().st_size < 150_000  # of 500 x 375 pixels of ImageNet, about 110 kB
    assert len({path.read_bytes() for path in paths}) == 3

    decoded = Decoded(paths, batch_size=2, device=torch.device("cpu"))
    assert decoded[0].shape == (2, 3, 224, 224)
    assert decoded[0].dtype == torch.uint8
    decoded.crop = lambda image: image
    whole = [decode_image(str(path)) for path in paths]
    for number, expected in enumerate(((0, 1), (2, 0), (1, 2))):  # the files in turn, again and again
        assert torch.equal(decoded[number], torch.stack([whole[each] for each in expected]))
    assert whole[0].float().std() > 20  # a picture, no grey plane
