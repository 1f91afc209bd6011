"""iteration -> learning rate, as a closed form: nothing to save, nothing to drift on resuming."""

from __future__ import annotations

import math

from lookaround_ddp.config import Config, ScheduleConfig, TrajectoryConfig


def learning_rate(config: Config, iteration: int, per_epoch: int) -> float:
    """Returns the learning rate of an iteration, counted from 0: the schedule's, until SWA takes over with its own.

    Args:
        per_epoch: iterations in an epoch.
    """
    base, start = config.optimizer.lr, round(config.trajectory.start * per_epoch)
    on_its_own = config.trajectory.swa_lr is None or iteration < start
    place = iteration if on_its_own else start
    total = length_over(config.schedule, place, config.length(per_epoch))
    rate = scheduled_rate(config.schedule, base, place, per_epoch, total)
    return rate if on_its_own else annealed_rate(config.trajectory, rate, iteration - start, per_epoch)


def length_over(schedule: ScheduleConfig, iteration: int, total: int) -> int:
    """Returns the iterations that a cosine goes over at this one: `total`, the run's, if the run was never extended."""
    return next((length for begin, length in reversed(schedule.spans) if begin <= iteration), total)


def annealed_rate(trajectory: TrajectoryConfig, rate: float, iterations: int, per_epoch: int) -> float:
    """Returns the rate on the way from `rate` to swa_lr, which is reached after anneal_epochs and then kept.

    It is the rate of torch's SWALR, moved every iteration.

    Args:
        rate: the schedule's rate where SWA begins.
        iterations: the iterations since then.
        per_epoch: iterations in an epoch.
    """
    assert trajectory.swa_lr is not None
    length = trajectory.anneal_epochs * per_epoch
    way = min(1.0, iterations / length) if length else 1.0
    if trajectory.anneal == "cos":
        way = (1 - math.cos(math.pi * way)) / 2
    return rate + (trajectory.swa_lr - rate) * way


def ends_cycle(schedule: ScheduleConfig, done: int, total: int) -> bool:
    """Returns whether one of the schedule's cycles ends with iteration number `done` of `total`, counted from 1."""
    return done * schedule.cycles // total > (done - 1) * schedule.cycles // total


def scheduled_rate(schedule: ScheduleConfig, base: float, iteration: int, per_epoch: int, total: int) -> float:
    """Returns the learning rate of the schedule alone, at an iteration counted from 0.

    Warm-up, at the start of the run, is linear: (i + 1) / n of the base rate in the i-th of its n iterations. Then
    multistep: base * gamma^(milestones passed); cosine: from base to min_lr by half a cosine over each of
    `cycles` equal parts of the run, moving every iteration or every epoch (SGDR, arXiv 1608.03983, eq. 5), and
    min_lr after it.

    Args:
        base: the rate after warm-up.
        per_epoch: iterations in an epoch.
        total: iterations that a cosine goes over: those of the run.
    """
    warmup = round(schedule.warmup_epochs * per_epoch)
    if iteration < warmup:
        return base * (iteration + 1) / warmup
    epoch = iteration / per_epoch
    if schedule.name == "multistep":
        return base * schedule.gamma ** sum(math.floor(epoch) >= milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        if iteration >= total:
            return schedule.min_lr
        moves = iteration if schedule.per == "iteration" else iteration - iteration % per_epoch
        place = moves * schedule.cycles % total / total  # the share of its cycle that is over, exact at its ends
        return schedule.min_lr + (base - schedule.min_lr) * (1 + math.cos(math.pi * place)) / 2
    return base
