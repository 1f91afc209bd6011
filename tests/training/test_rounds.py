"""What is said of average steps to which a run does not come, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from lookaround_ddp.config.load import load_config
from lookaround_ddp.distributed.world import World
from lookaround_ddp.training.rounds import unreached
from lookaround_ddp.training.setup import set_up
from tests.support.runs import TINY

STEP, ALL = "the first average step would be after {}", "the first average over all would be after {}"
FOUR = "replicas=[[crop],[crop],[crop],[crop]]"
CASES = {  # of a run of 10 iterations, 5 in an epoch: values -> the beginnings of what is said
    "average.k=10": [],
    "average.k=11": [STEP.format(11)],
    "average.k=100000 epochs=20 iterations=10": [STEP.format(100000)],
    "average.k=epoch average.start=1": [],
    "average.k=epoch average.start=1.2": [STEP.format(11)],
    "average.start=50": [STEP.format(253)],
    "average.k=never": [],
    "average.k=100 replicas=[[crop,hflip]]": [],
    "average.k=[[0,2],[1,5]]": [],
    "average.k=[[0,7],[1,3],[1.2,2]]": ["average.k is 3 from epoch 1 on, but no round begins then"],
    "average.k=[[0,10],[1,5]]": ["average.k is 5 from epoch 1 on, but no round begins then"],
    "average.k=[[0,1],[1,4]] average.start=1": [],
    f"{FOUR} average.k=2 average.nodes.size=2 average.nodes.k=10": [],
    f"{FOUR} average.k=2 average.nodes.size=2 average.nodes.k=12": [ALL.format(12)],
}


@pytest.mark.parametrize("values", CASES)
def test_average_steps_that_are_not_reached(values: str) -> None:
    config = load_config(None, [*TINY, *values.split()])
    run = set_up(config, World(0, 1, len(config.replicas), torch.device("cpu"), "none"))
    assert run.total == 10
    said = [line.removeprefix("the run ends after iteration 10, and ") for line in unreached(run)]
    assert [line[: len(start)] for line, start in zip(said, CASES[values], strict=True)] == CASES[values]


def test_a_line_of_the_record_for_each_short_epoch() -> None:
    """An epoch of 1,000 digits has 8 iterations of 128 images, and 63 of 16 images."""
    for values, every in (((), 8), (("data.batch_size=16",), 50), (("record.every=7",), 7)):
        run = set_up(load_config(None, ["model.width=4", *values]), World(0, 1, 3, torch.device("cpu"), "none"))
        assert run.config.record.every == every
