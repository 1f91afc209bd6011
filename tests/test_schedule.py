"""Learning rates, against values worked out by hand; configs, of which each can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lookaround_ddp.config import Config, DataConfig, ScheduleConfig, UserError, changed_keys, load_config, make_config
from lookaround_ddp.data.augment import train_pipelines
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.models import create_model
from lookaround_ddp.optim import create_optimizer
from lookaround_ddp.schedule import learning_rate

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def rate(schedule: ScheduleConfig, iteration: int, epochs: int = 200) -> float:
    return learning_rate(schedule, base=0.1, iteration=iteration, per_epoch=10, epochs=epochs)


def test_multistep_of_the_paper() -> None:
    """CIFAR-100: warm-up in the first epoch, then x 0.2 at epochs 60, 120 and 160."""
    schedule = ScheduleConfig(name="multistep", warmup_epochs=1, milestones=(60, 120, 160), gamma=0.2)
    rates = [rate(schedule, iteration) for iteration in (0, 4, 9, 10, 599, 600, 1199, 1200, 1600, 1999)]
    assert rates == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1, 0.02, 0.02, 0.004, 0.0008, 0.0008])


def test_cosine_per_iteration_and_per_epoch() -> None:
    by_iteration = ScheduleConfig(name="cosine", min_lr=0.02)
    assert [rate(by_iteration, i) for i in (0, 1000)] == pytest.approx([0.1, 0.06])
    assert rate(by_iteration, 500) == pytest.approx(0.02 + 0.08 * (1 + 2**-0.5) / 2)
    by_epoch = ScheduleConfig(name="cosine", per="epoch")
    assert rate(by_epoch, 1009) == rate(by_epoch, 1000) == pytest.approx(0.05)


def test_cosine_restarts() -> None:
    schedule = ScheduleConfig(name="cosine", cycles=4)
    assert [rate(schedule, i) for i in (0, 500, 1000, 1500)] == pytest.approx([0.1] * 4)
    assert rate(schedule, 750) == pytest.approx(0.05)
    assert rate(schedule, 499) < 1e-5


def test_constant_after_a_fractional_warmup() -> None:
    schedule = ScheduleConfig(name="constant", warmup_epochs=0.5)
    assert [rate(schedule, i) for i in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_config_can_be_built_and_opens_with_its_command(path: Path) -> None:
    config = load_config(path)
    with torch.device("meta"):
        assert sum(1 for _ in create_model(config.model, 10, 3).parameters()) > 20
    digits = open_dataset(DataConfig(), seed=0)
    assert all(train_pipelines(config.augment, own, digits, config.label_smoothing) for own in config.replicas)
    create_optimizer(config.optimizer, torch.nn.Linear(2, 2))
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"lookaround_ddp train configs/{'/'.join(path.parts[-2:])}" in line for line in head)


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 4


def test_numbers_that_yaml_1_1_reads_as_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("optimizer: {lr: 1e-5, weight_decay: 5e-4}\naverage: {k: epoch}\n")
    config = load_config(tmp_path / "c.yaml", ["optimizer.lr=2e-3", "data.root=a=b", "replicas=[[hflip],[vflip]]"])
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (2e-3, 5e-4)
    assert (config.average.k, config.data.root, config.replicas) == ("epoch", "a=b", (("hflip",), ("vflip",)))


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3


def test_identity_leaves_out_what_does_not_touch_the_weights() -> None:
    base = Config().identity()
    same = make_config({"out": "x", "timeout": 5, "evaluate": {"every": 3}, "data": {"root": "y", "workers": 4}})
    assert same.identity() == base
    assert list(changed_keys(base, make_config({"average": {"k": 7}}).identity())) == ["average.k: 5 -> 7"]


def test_values_that_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r"warmup_epochs is 30.0: it must end before epoch 20"):
        make_config({"schedule": {"warmup_epochs": 30.0}})
    with pytest.raises(UserError, match=r"data.mean and data.std go together"):
        make_config({"data": {"mean": [0.5]}})
