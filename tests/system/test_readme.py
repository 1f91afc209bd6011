"""The README's example runs as it stands, its commands exist, and its list of files is complete."""

from __future__ import annotations

import re
from pathlib import Path

from lookaround_ddp.config.load import load_config
from tests.support.runs import ROOT, torchrun

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_library_example_under_torchrun(tmp_path: Path) -> None:
    """Every rank evaluates the same mean model, on images that none has trained on."""
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(example)
    said = torchrun(ranks=3, program=["example.py"], cwd=tmp_path)
    accuracies = dict(re.findall(r"^rank (\d): (\d+\.\d)%$", said, re.MULTILINE))
    assert sorted(accuracies) == ["0", "1", "2"], said
    assert len(set(accuracies.values())) == 1
    assert float(accuracies["0"]) > 90  # guessing: 10


def test_its_configs_exist_and_its_settings_are_valid(tmp_path: Path) -> None:
    for name in re.findall(r"configs/\w+/[\w-]+\.yaml", README):
        load_config(ROOT / name)
    (settings,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(settings)
    assert load_config(tmp_path / "config.yaml").replicas == (("hflip",), ("vflip",), ("randaugment",))


def test_its_scripts_and_pictures_exist() -> None:
    named = re.findall(r"bash (launch/\w+\.sh)|\]\((launch/[\w.]+)\)", README)
    assert len(named) >= 3
    assert all((ROOT / (script or picture)).is_file() for script, picture in named)


def test_its_list_of_packages_is_complete() -> None:
    (listed,) = (block for block in blocks("") if "averaging/" in block)
    names = set(re.findall(r"^(\w+)/ ", listed, re.MULTILINE))
    assert names == {path.parent.name for path in (ROOT / "lookaround_ddp").glob("*/__init__.py")}
