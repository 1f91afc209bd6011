"""`show` and `configs`: what would be trained, before anything is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lookaround_ddp import __version__
from lookaround_ddp.cli import main
from lookaround_ddp.config.load import load_config


def test_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it prints is a config: the same. 500 images in batches of 32 are 16 iterations, 30 epochs 480."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NPROC", "2")
    values = ["data.train_images=500", "data.validation=100", "model.width=4", "channels_last=false"]
    main(["show", "digits/resnet8-lookaround", *values])
    said = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(said)
    assert load_config(tmp_path / "printed.yaml") == load_config(Path("digits/resnet8-lookaround"), values)
    comments = [line for line in said.splitlines() if line.startswith("#")]
    # a 3x3 convolution into 4 channels, blocks of (4, 4), (4, 8) and (8, 16), their norms and shortcuts, a head of 10
    parameters = 9 * 4 + (2 * 9 * 16) + (9 * 32 + 9 * 64 + 32) + (9 * 128 + 9 * 256 + 128)
    norms = 2 * (4 + 2 * 4 + 3 * 8 + 3 * 16)
    assert comments[0] == f"# resnet8: {parameters + norms + 16 * 10 + 10:,} parameters, 10 classes"
    assert comments[1:4] == [
        "# digits: 500 training images, 100 held out, 797 test images",
        "# 3 replicas, k = 5, on 2 processes of this machine (cpu)",
        "# 480 iterations, 16 in an epoch; 32 images for each replica",
    ]
    estimate = r"# about \d+:\d\d of training, estimated from a few iterations of one replica; scoring comes on top"
    assert re.fullmatch(estimate, comments[4])
    assert list(tmp_path.iterdir()) == [tmp_path / "printed.yaml"]


def test_show_of_replicas_in_nodes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What two nodes of two average is no matter of the one replica that is timed."""
    monkeypatch.setenv("NPROC", "4")
    values = ["data.train_images=64", "model.width=4", "channels_last=false", "replicas=[[crop],[crop],[none],[none]]"]
    main(["show", "digits/resnet8-lookaround", *values, "average.nodes={size: 2, k: 20}"])
    assert "# 4 replicas, k = 5, on 4 processes of this machine (cpu)" in capsys.readouterr().out


def test_show_of_data_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The config is printed all the same."""
    with pytest.raises(SystemExit) as ended:
        main(["show", "cifar100/resnet50-lookaround", f"data.root={tmp_path}"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "name: cifar100" in said.out
    assert said.err.startswith("error: no cifar100 under ")


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"digits/resnet8-lookaround +Lookaround on 1,000 handwritten digits", line) for line in lines)
    assert re.fullmatch(r"and \d+ cells of the paper's tables and figures: `configs paper` lists them", lines[-1])
    main(["configs", "paper/cifar"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert all(line.startswith("paper/cifar/") for line in lines)
    with pytest.raises(SystemExit) as ended:
        main(["configs", "nowhere"])
    assert ended.value.code == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"lookaround_ddp {__version__}\n"
