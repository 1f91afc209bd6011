"""The count of steps, inexact means and a cleared optimizer, in one process: against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from lookaround_ddp import Lookaround
from tests.support.trainings import Weights, fill


def test_the_count_is_saved_and_loaded() -> None:
    """k = 3: after 4 steps the next average follows the sixth."""
    around = Lookaround(Weights(), k=3)
    assert [around.step() for _ in range(4)] == [False, False, True, False]
    assert around.state_dict() == {"steps": 4, "distances": None}
    other = Lookaround(Weights(), k=3)
    other.load_state_dict({"steps": 4, "distances": None})
    assert [other.step() for _ in range(5)] == [False, True, False, False, True]


def test_inexact_means_average_too() -> None:
    models = [Weights(value) for value in (0.0, 1.0, 5.0)]
    around = Lookaround(models, k=1, exact=False)
    for model, value in zip(models, (0.0, 1.0, 5.0), strict=True):
        fill(model, value)
    assert around.step()
    assert [model.w.tolist() for model in models] == [[2.0, 2.0]] * 3
    assert [model.running_mean.tolist() for model in models] == [[2.0, 2.0]] * 3
    assert [model.vector.tolist() for model in models] == [[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]


def test_what_begins_anew_takes_its_first_step_again() -> None:
    """Adan of timm, whose first step is lr and which counts its steps in the group, not in the state."""
    model = nn.PReLU(init=0.0)
    weight = model.weight
    optimizer = create_optimizer_v2([weight], opt="adan", lr=0.125, weight_decay=0.0)
    around = Lookaround(model, k=2, optimizers=[optimizer], optimizer_state="reset")
    steps = []
    for gradient in (1.0, 3.0, 5.0):  # the third is the first after an average step
        before, weight.grad = weight.item(), torch.tensor([gradient])
        optimizer.step()
        around.step()
        steps.append(before - weight.item())
    assert steps[0] == pytest.approx(0.125, rel=1e-5)
    assert steps[1] != pytest.approx(0.125, rel=1e-2)
    assert steps[2] == pytest.approx(0.125, rel=1e-5)
