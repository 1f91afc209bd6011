"""Configs that come with the package are found by name from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.shipped import PACKAGED, about_config, config_names, configs_folder, find_config
from lookaround_ddp.errors import UserError
from tests.support.runs import ROOT

DIGITS = "digits/resnet8-lookaround"


def test_they_are_those_of_the_clone() -> None:
    files = {
        path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "base"
    }
    assert {Path(f"{name}.yaml") for name in config_names()} == files
    assert about_config(DIGITS).startswith("Lookaround on 1,000 handwritten digits")


@pytest.mark.parametrize("name", [DIGITS, f"{DIGITS}.yaml", f"configs/{DIGITS}.yaml", f"configs/{DIGITS}"])
def test_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs_folder() == PACKAGED
    assert find_config(Path(name)) == PACKAGED / f"{DIGITS}.yaml"
    assert load_config(Path(name)).out == "runs/digits-resnet8-lookaround"
    monkeypatch.chdir(ROOT)
    assert configs_folder() == Path("configs")


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "digits").mkdir(parents=True)
    (tmp_path / "configs" / f"{DIGITS}.yaml").write_text("epochs: 3\n")
    assert load_config(Path(f"configs/{DIGITS}.yaml")).epochs == 3
    assert load_config(Path(DIGITS)).epochs == 30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digits/resnet8-lokaround",
            "resnet8-lokaround: did you mean digits/resnet8-lookaround?",
        ),
        ("mine.yaml", "config mine.yaml: No such file or directory"),
        ("../configs/digits/resnet8-lookaround", "did you mean digits/resnet8-lookaround"),
    ],
)
def test_what_is_not_there(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load_config(Path(name))
