"""What becomes of the schedule of a run that is made longer, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lookaround_ddp.config.extend import as_extended
from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config
from lookaround_ddp.errors import UserError
from lookaround_ddp.optim.schedule import learning_rate

PER_EPOCH = 10


def extended(config: Config, epochs: int, word: str, done: int) -> Config:
    schedule = config.schedule.model_copy(update={"extend": word})
    longer = config.model_copy(update={"epochs": epochs, "schedule": schedule})
    return as_extended(longer, config.identity(), done, PER_EPOCH)


def rates(config: Config, *iterations: int) -> list[float]:
    return [learning_rate(config, each, PER_EPOCH) for each in iterations]


def begun(**schedule: Any) -> Config:
    """10 epochs, 100 iterations."""
    return make_config({"epochs": 10, "optimizer": {"lr": 0.1}, "schedule": schedule})


def test_a_cosine_is_stretched_from_where_it_goes_on() -> None:
    config = extended(begun(), 20, "stretch", done=50)
    assert config.schedule.spans == ((0, 100), (50, 200))
    assert config.schedule.extend is None
    wanted = [0.05 * (1 + math.cos(math.pi * place)) for place in (0.0, 0.49, 0.25, 0.5, 0.75)]
    assert rates(config, 0, 49, 50, 100, 150) == pytest.approx(wanted)
    assert make_config(config.model_dump(mode="json")) == config
    again = extended(config, 40, "stretch", done=150)
    assert again.schedule.spans == ((0, 100), (50, 200), (150, 400))
    assert rates(again, 100, 200) == pytest.approx([0.05, 0.05])
    assert extended(config, 40, "stretch", done=50).schedule.spans == ((0, 100), (50, 400)), "killed before it saved"


def test_a_cosine_is_held_at_its_end() -> None:
    config = extended(begun(min_lr=0.01), 20, "hold", done=50)
    assert config.schedule.spans == ((0, 100),)
    assert rates(config, 50, 100, 150, 199) == pytest.approx([0.055, 0.01, 0.01, 0.01])
    further = extended(config, 40, "stretch", done=200)
    assert further.schedule.spans == ((0, 100), (200, 400))
    assert rates(further, 150, 200) == pytest.approx([0.01, 0.055])


@pytest.mark.parametrize("word", ["hold", "stretch"])
def test_other_schedules_are_those_of_a_run_that_was_so_long_from_the_start(word: str) -> None:
    for schedule in ({"name": "constant"}, {"name": "multistep", "milestones": [5, 15], "warmup_epochs": 1}):
        straight = begun(**schedule).model_copy(update={"epochs": 20})
        config = extended(begun(**schedule), 20, word, done=100)
        assert config == straight
        assert config.identity() == straight.identity()
    assert rates(config, 49, 50, 149, 150) == pytest.approx([0.1, 0.02, 0.02, 0.004])


def test_swa_keeps_the_rate_that_it_began_from() -> None:
    """From the cosine's at epoch 5 to 0.03 within two epochs, also when the run is extended after that."""
    values = {"epochs": 10, "trajectory": {"name": "swa", "start": 5, "swa_lr": 0.03, "anneal_epochs": 2}}
    config = extended(make_config(values), 20, "hold", done=100)
    assert rates(config, 50, 60, 100, 199) == pytest.approx([0.05, 0.04, 0.03, 0.03])


def test_no_run_and_one_of_that_length() -> None:
    """The word has no effect, and does not stay: the next time it must be given again."""
    config = begun(extend="stretch")
    assert as_extended(config, None, 0, PER_EPOCH) == begun()
    assert as_extended(config, begun().identity(), 30, PER_EPOCH) == begun()


@pytest.mark.parametrize("spans", [[[1, 100]], [[0, 100], [0, 200]], [[0, 100], [50, 0]], [[0, 9], [7, 9], [3, 9]]])
def test_spans_that_are_none(spans: list[list[int]]) -> None:
    with pytest.raises(UserError, match=r"schedule\.spans: the first begins at iteration 0"):
        begun(spans=spans)


def test_spans_and_snapshots() -> None:
    with pytest.raises(UserError, match="train it from its start"):
        make_config({"snapshots": True, "schedule": {"cycles": 2, "spans": [[0, 100], [50, 200]]}})
