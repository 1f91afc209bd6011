"""Two thousand configs with something odd in them: each is refused in a line, or trains to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.preflight import run_preflight
from tests.support.mutations import mutated_config
from tests.support.runs import train

SEEDS, PARTS = 2000, 4
TRAINED = 20  # of those that nothing refuses, one in so many is trained


@pytest.mark.filterwarnings("ignore")  # of torchvision and timm, about arguments that they take all the same
@pytest.mark.parametrize("part", range(PARTS))
def test_odd_configs(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of another kind than UserError fails the test."""
    monkeypatch.chdir(tmp_path)
    accepted: dict[str, int] = {}
    refused: list[str] = []
    for seed in range(part, SEEDS, PARTS):
        (tmp_path / "config.yaml").write_text(text := mutated_config(seed))
        try:
            config = load_config(Path("config.yaml"), [f"out={tmp_path}/run"])
            run_preflight(config, 1, alone=False)
            accepted[text] = seed
        except UserError as error:
            refused.append(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
    assert all(line and "\n" not in line for line in refused)
    assert len(refused) > SEEDS / PARTS / 4
    assert len(accepted) > SEEDS / PARTS / 20
    for text, seed in list(accepted.items())[::TRAINED]:
        (tmp_path / "config.yaml").write_text(text)
        said = train(tmp_path / f"run-{seed}", "config.yaml")
        assert "Traceback" not in said, seed
