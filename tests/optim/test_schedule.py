"""Learning rates, against values worked out by hand; configs, of which each can be built."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import SWALR

from lookaround_ddp.config.changes import changed_keys
from lookaround_ddp.config.load import load_config, make_config
from lookaround_ddp.config.rounds import k_text, lengths
from lookaround_ddp.config.schema import Config, ScheduleConfig
from lookaround_ddp.errors import UserError
from lookaround_ddp.optim.schedule import ends_cycle, learning_rate, scheduled_rate
from tests.support.runs import ROOT

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if path.parent.name != "base"]


def rate(schedule: ScheduleConfig, iteration: int, epochs: int = 200) -> float:
    return scheduled_rate(schedule, base=0.1, iteration=iteration, per_epoch=10, total=10 * epochs)


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


def test_restarts_that_do_not_divide_the_run() -> None:
    """3 cycles of 20 iterations: they end with iterations 7, 14 and 20, and the rate is back after each."""
    assert [done for done in range(1, 21) if ends_cycle(ScheduleConfig(cycles=3), done, 20)] == [7, 14, 20]
    schedule = ScheduleConfig(name="cosine", cycles=3, warmup_epochs=0.2)
    rates = [rate(schedule, i, epochs=2) for i in range(20)]
    assert [i for i in range(1, 20) if rates[i] > rates[i - 1]] == [1, 7, 14]  # the warm-up is in the first alone
    assert rates[7] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.05)))


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_swa_takes_over_as_torchs_swalr_does(anneal: str) -> None:
    """From the rate of the schedule at epoch 3 to 0.05 within 2 epochs, then 0.05; before, the schedule's."""
    values = {"epochs": 8, "schedule": {"name": "constant"}, "optimizer": {"lr": 0.4}}
    values["trajectory"] = {"name": "swa", "start": 3, "swa_lr": 0.05, "anneal_epochs": 2, "anneal": anneal}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    swalr = SWALR(optimizer, swa_lr=0.05, anneal_epochs=20, anneal_strategy=anneal)
    expected = [0.4] * 30
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        swalr.step()
    found = [learning_rate(make_config(values), i, per_epoch=10) for i in range(80)]
    assert found == pytest.approx(expected)
    assert found[29:31] + found[50:51] == pytest.approx([0.4, 0.4, 0.05])


def test_a_file_on_top_of_others(tmp_path: Path) -> None:
    """Sections are merged, later bases and the file itself win, lists are replaced; an optional section can go off."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.yaml").write_text("epochs: 7\nseed: 1\noptimizer: {lr: 0.2, sam: {rho: 0.1}}\n")
    (tmp_path / "b" / "two.yaml").write_text("base: one.yaml\nseed: 2\nreplicas: [[hflip], [vflip]]\n")
    (tmp_path / "c.yaml").write_text(
        "base: [b/two.yaml]\nreplicas: [[crop]]\noptimizer: {momentum: 0.5, sam: null}\ndata: {batch_size: 3}\n"
    )
    config = load_config(tmp_path / "c.yaml", ["optimizer.lookahead.k=7"])
    assert (config.epochs, config.seed, config.replicas) == (7, 2, (("crop",),))
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.sam) == (0.2, 0.5, None)
    assert config.optimizer.lookahead is not None
    assert config.optimizer.lookahead.k == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: c.yaml", "it is its own base"),
        ("base: nowhere.yaml", "nowhere.yaml: No such file"),
        ("base: 3", "base is a file's name, or a list of them"),
    ],
)
def test_bases_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("trajectory.name=swa trajectory.start=20", "a run of 20 epochs ends before the average begins"),
        ("trajectory.name=swad", "set data.validation"),
        ("trajectory.swa_lr=0.1", "swa_lr is for swa, not for none"),
        ("trajectory.name=swda", "trajectory.name is 'swda'"),
        ("snapshots=true", "schedule.cycles of at least 2"),
        ("average.before_start=single", "needs average.start between 0 and the run's 20 epochs"),
        ("average.before_start=single average.start=3 average.k=never", "and rounds"),
        ("average.k=0", "a round has at least 1 iteration"),
        ("average.k='5 rounds'", '"10 epochs" or never'),
        ("average.k=[]", "its first entry is for the rounds from epoch 0 on, such as [[0, epoch], [100, 5]]"),
        ("average.k=[[1, 5], [2, 3]]", "its first entry is for the rounds from epoch 0 on"),
        ("average.k=[[0, 5], [3, 4], [3, 2]]", "epoch 3 stands after epoch 3: put the entries in their order"),
        ("average.k=[[0, 5], [3, 4], [1.5, 2]]", "epoch 1.5 stands after epoch 3"),
        (
            "average.k=[[0, 5], [3, 0]]",
            "average.k from epoch 3 on is 0: a round has at least 1 iteration, or use epoch",
        ),
        ("average.k=[[0, epochal]]", "average.k from epoch 0 on is 'epochal': it should be an integer, epoch"),
        ("average.k=[[0, 5], [3, never]]", "average.k is never from epoch 3 on: it stands alone"),
        ("average.k=[[0, 5], [20, 3]]", "average.k is 3 from epoch 20 on: a run of 20 epochs ends before"),
        ("average.k=[[0, 5], [x, 3]]", "average.k is [[0, 5], ['x', 3]]: it should be an integer, epoch, "),
        ("average.k=[[0, 5, 3]]", "never; or a list such as [[0, epoch], [100, 5]]"),
        ("average.k=[0, 5]", "average.k is [0, 5]: it should be"),
        ("average.k=[[0,1.5]]", "average.k is [[0, 1.5]]: it should be"),
        ("average.k=[[0, true]]", "average.k is [[0, True]]: it should be"),
        ("average.k=[[.nan, 5]]", "average.k is [[nan, 5]]: it should be"),
        ("iterations=0", "greater than or equal to 1"),
        ("iterations=1.5", "valid integer"),
        ("optimizer.sam.rhoo=1", "unknown key optimizer.sam.rhoo: did you mean optimizer.sam.rho?"),
        ("optimizer.sam.rho=0", "greater than 0"),
        ("trajectory.every=0", "greater than or equal to 1"),
        ("trajectory.every=-3", "greater than or equal to 1"),
        ("trajectory.start=.inf", "finite number"),
        ("evaluate.every=.nan", "finite number"),
        ("out=!!timestamp 2024-13-45", "not YAML: month must be in 1..12"),
        ("optimizer.lookahead.alpha=2", "less than or equal to 1"),
        ("optimizer.lookahead.momentum=pull", "'keep', 'reset' or 'pullback'"),
    ],
)
def test_parts_that_do_not_go_together(pair: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(None, re.split(r" (?=\w+\.)", pair))


def test_rounds_in_epochs() -> None:
    ks = (5, "epoch", "1 epoch", "10 epochs", "2epochs", "never")
    found = {k: lengths(k, per_epoch=7) for k in ks}
    expected = {5: 5, "epoch": 7, "1 epoch": 7, "10 epochs": 70, "2epochs": 14}
    assert found == {k: [(0, length)] for k, length in expected.items()} | {"never": []}


def test_rounds_whose_length_changes() -> None:
    k = load_config(None, ["average.k=[[0, epoch], [1.5, 10 epochs], [12, 5]]"]).average.k
    assert lengths(k, per_epoch=8) == [(0, 8), (12, 80), (96, 5)]
    assert k_text(k) == "epoch, 10 epochs from epoch 1.5 on, 5 from epoch 12 on"
    assert (k_text("epoch"), k_text(5)) == ("epoch", "5")


def test_a_length_in_iterations() -> None:
    """20 of them, 8 in an epoch: 2.5 epochs. Cosine and cycles go over the whole; milestones stay in epochs."""
    values = {"iterations": 20, "epochs": 1000, "optimizer": {"lr": 0.1}}

    def rates(**schedule: object) -> list[float]:
        config = make_config({**values, "schedule": schedule})
        return [learning_rate(config, iteration, per_epoch=8) for iteration in range(20)]

    assert make_config(values).length(per_epoch=8) == 20
    assert make_config({"epochs": 3}).length(per_epoch=8) == 24
    cosine = rates(name="cosine")
    assert [cosine[0], cosine[10]] == pytest.approx([0.1, 0.05])
    assert cosine[19] == pytest.approx(0.05 * (1 - math.cos(math.pi / 20)))
    cycles = rates(name="cosine", cycles=2)
    assert [cycles[0], cycles[5], cycles[10], cycles[15]] == pytest.approx([0.1, 0.05, 0.1, 0.05])
    steps = rates(name="multistep", milestones=[1, 2], gamma=0.5, warmup_epochs=0.25)
    assert steps == pytest.approx([0.05, 0.1, *[0.1] * 6, *[0.05] * 8, *[0.025] * 4])


def test_the_length_in_what_decides_the_weights() -> None:
    """Without `iterations`, what a run was made with before there was such a key; with it, epochs do not count."""
    before = Config().model_dump(mode="json")
    assert Config().identity().keys() == before.keys() - {
        *("out", "timeout", "deterministic", "evaluate", "checkpoint", "record", "iterations")
    }
    assert Config().identity()["epochs"] == 20
    one, other = (make_config({"iterations": 7, "epochs": epochs}).identity() for epochs in (3, 4))
    assert one == other
    assert list(changed_keys(Config().identity(), one)) == ["epochs: 20 -> None", "iterations: None -> 7"]


def test_constant_after_a_fractional_warmup() -> None:
    schedule = ScheduleConfig(name="constant", warmup_epochs=0.5)
    assert [rate(schedule, i) for i in range(6)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


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
