"""Averages along time against closed forms: weights that are known numbers, losses worked out by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from lookaround_ddp.config.schema import TrajectoryConfig
from lookaround_ddp.optim.swad import Swad
from lookaround_ddp.optim.weight_averaging import Trajectory

# The valley of the example: the window .9, .92, .93 is the first that begins with its lowest loss.
LOSSES = [2, 1.6, 1.3, 1.1, 1, 0.95, 0.9, 0.92, 0.93, 0.91, 0.94, 0.93, 0.92, 0.95, 0.96, 1.3]


class Network(nn.Module):
    """Its weight after iteration i is i^2; its statistics are i."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def at(self, iteration: int) -> Network:
        self.weight.data.fill_(iteration**2)
        self.running_mean.fill_(iteration)
        self.count.fill_(iteration)
        return self


def mean_square(iterations: Sequence[int]) -> float:
    return sum(i**2 for i in iterations) / len(iterations)


def along(config: TrajectoryConfig, iterations: Sequence[int], per_epoch: int = 10) -> Trajectory:
    network = Network()
    trajectory = Trajectory(config, network, per_epoch)
    for iteration in iterations:
        trajectory.observe(network.at(iteration), iteration)
    return trajectory


def weight(trajectory: Trajectory) -> float:
    return trajectory.average.model().weight[1].item()


@pytest.mark.parametrize(
    ("every", "taken"),
    [("epoch", [30, 40, 50]), (None, [30, 40, 50]), (7, [27, 34, 41, 48]), (1, list(range(21, 51)))],
)
def test_swa_is_the_mean_of_its_snapshots(every: int | str | None, taken: list[int]) -> None:
    trajectory = along(TrajectoryConfig(name="swa", start=2, every=every), range(1, 51))
    assert weight(trajectory) == pytest.approx(mean_square(taken), rel=1e-6)
    assert trajectory.updates == len(taken)


def test_a_snapshot_waits_for_the_end_of_a_round() -> None:
    """Snapshots are due after iterations 10, 20, 30, 40; rounds of 7 end with 14, 21, 35, 42. Two at once are one."""
    config = TrajectoryConfig(name="swa")
    assert weight(along(config, range(7, 43, 7))) == pytest.approx(mean_square([14, 21, 35, 42]), rel=1e-6)
    assert weight(along(config, [5, 25, 29, 45])) == pytest.approx(mean_square([25, 45]), rel=1e-6)


def test_ema_is_its_recursion_and_takes_the_statistics_along() -> None:
    """a_1 = x_1, a_n = 0.9 a_(n-1) + 0.1 x_n, from iteration 21 on."""
    trajectory = along(TrajectoryConfig(name="ema", start=2, decay=0.9), range(1, 31))
    squares, counts = 21.0**2, 21.0
    for iteration in range(22, 31):
        squares, counts = 0.9 * squares + 0.1 * iteration**2, 0.9 * counts + 0.1 * iteration
    model = trajectory.average.model()
    assert weight(trajectory) == pytest.approx(squares, rel=1e-5)
    assert model.running_mean.item() == pytest.approx(counts, rel=1e-5)
    assert model.count.item() == 30


def test_ema_takes_tied_weights_in_once() -> None:
    """From 1 to 2 with a decay of 0.9: 1.1."""
    network = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    network[1].weight = network[0].weight
    trajectory = Trajectory(TrajectoryConfig(name="ema", decay=0.9), network, 10)
    for iteration in (1, 2):
        network[0].weight.data.fill_(iteration)
        trajectory.observe(network, iteration)
    assert [layer.weight.item() for layer in trajectory.average.model()] == pytest.approx([1.1, 1.1])


def test_weights_that_are_shown_twice_count_once() -> None:
    """The last iteration ends a round, and the run."""
    trajectory, _ = valley([9, 8, 7, 6, 5])
    before = weight(trajectory)
    assert not trajectory.observe(Network().at(10), 10)
    assert weight(trajectory) == before


def valley(losses: Sequence[float], per_segment: int = 2, **settings: int | float) -> tuple[Trajectory, Swad]:
    """A run of segments of two iterations each: segment s has iterations 2s + 1 and 2s + 2."""
    network = Network()
    trajectory = Trajectory(TrajectoryConfig(name="swad", every=per_segment, **settings), network, 10)
    average = trajectory.average
    assert isinstance(average, Swad)
    for iteration in range(1, per_segment * len(losses) + 1):
        if trajectory.observe(network.at(iteration), iteration):
            average.validated(losses[iteration // per_segment - 1])
    return trajectory, average


def iterations_of(segments: Sequence[int]) -> list[int]:
    return [i for segment in segments for i in (2 * segment + 1, 2 * segment + 2)]


def test_the_valley_of_the_example() -> None:
    trajectory, average = valley(LOSSES)
    assert (average.start, average.end) == (6, 14)
    assert average.threshold == pytest.approx(1.19167, abs=5e-6)
    assert weight(trajectory) == pytest.approx(mean_square(iterations_of(range(6, 15))), rel=1e-6)
    assert trajectory.average.model().count.item() == 32  # integer buffers are those of the last iteration


def test_the_valley_ends_before_six_bad_losses_in_a_row() -> None:
    """Five bad ones are climbed over; what follows six is not looked at."""
    bad = [1.2] * 5
    trajectory, average = valley([*LOSSES[:9], *bad, 1.0, *bad, 1.2, 0.1, 0.1, 0.1])
    assert (average.start, average.end, average.over) == (6, 14, True)
    assert weight(trajectory) == pytest.approx(mean_square(iterations_of(range(6, 15))), rel=1e-6)


def test_bad_losses_inside_the_first_window_wait_for_a_good_one() -> None:
    """Window 1, 1, 10 of ratio 0.3: the threshold is 5.2, so that segment 2 is in only once segment 3 is good."""
    _, average = valley([1, 1, 10])
    assert (average.start, average.end) == (0, 1)
    trajectory, average = valley([1, 1, 10, 2])
    assert (average.start, average.end) == (0, 3)
    assert weight(trajectory) == pytest.approx(mean_square(range(1, 9)), rel=1e-6)


def test_a_window_of_one_and_a_tolerance_of_one() -> None:
    """It begins at once and ends before the first loss above 1.5 times the first one."""
    trajectory, average = valley([1, 1.4, 1.6, 1], n_converge=1, n_tolerance=1, ratio=0.5)
    assert (average.start, average.end, average.over) == (0, 1, True)
    assert weight(trajectory) == pytest.approx(mean_square([1, 2, 3, 4]), rel=1e-6)


def test_a_window_may_hold_the_valleys_end() -> None:
    """Window 1, 9, 9, 1, 1 of ratio 0.3: above 5.46 are two in a row, as many as are tolerated: it was segment 0."""
    trajectory, average = valley([1, 9, 9, 1, 1, 1], n_converge=5, n_tolerance=2)
    assert (average.start, average.end, average.over) == (0, 0, True)
    assert weight(trajectory) == pytest.approx(mean_square([1, 2]), rel=1e-6)


def test_a_loss_that_never_converges_leaves_the_last_window() -> None:
    trajectory, average = valley([9, 8, 7, 6, 5])
    assert average.start is None
    assert weight(trajectory) == pytest.approx(mean_square(iterations_of([2, 3, 4])), rel=1e-6)


@pytest.mark.parametrize(
    "config", [{"name": "swa", "every": 3}, {"name": "ema", "decay": 0.7}, {"name": "swad", "every": 2}]
)
def test_it_goes_on_from_its_state_bit_for_bit(config: dict[str, object]) -> None:
    """Stopped after any of 32 iterations: in the middle of a segment, before, in and after the valley."""

    def go_on(trajectory: Trajectory, network: Network, iterations: Sequence[int]) -> None:
        for i in iterations:
            due = trajectory.observe(network.at(i), i)
            if due and isinstance(trajectory.average, Swad):
                trajectory.average.validated(LOSSES[i // 2 - 1])

    settings, network = TrajectoryConfig(**config), Network()
    whole = Trajectory(settings, network, 10)
    go_on(whole, network, range(1, 33))
    expected = weight(whole)
    for stop in range(1, 32):
        first, again = (Trajectory(settings, Network(), 10) for _ in range(2))
        go_on(first, network, range(1, stop + 1))
        again.load_state_dict(copy.deepcopy(first.state_dict()))
        go_on(again, network, range(stop + 1, 33))
        assert weight(again) == expected
        assert again.average.model().count.item() == whole.average.model().count.item()
