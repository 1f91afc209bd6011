"""iteration -> learning rate, as a closed form: nothing to save, nothing to drift on resuming."""

from __future__ import annotations

import math

from lookaround_ddp.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, base: float, iteration: int, per_epoch: int, epochs: int) -> float:
    """The learning rate of an iteration, counted from 0.

    Warm-up is linear: (i + 1) / n of the base rate in the i-th of its n iterations. Then
    multistep: base * gamma^(milestones passed); cosine: from base to min_lr by half a cosine over each of
    `cycles` equal parts of the run, moving every iteration or every epoch (SGDR, arXiv 1608.03983, eq. 5).

    Args:
        base: the rate after warm-up.
        per_epoch: iterations in an epoch.
        epochs: epochs in the run.
    """
    warmup = round(schedule.warmup_epochs * per_epoch)
    if iteration < warmup:
        return base * (iteration + 1) / warmup
    epoch = iteration / per_epoch
    if schedule.name == "multistep":
        return base * schedule.gamma ** sum(math.floor(epoch) >= milestone for milestone in schedule.milestones)
    if schedule.name == "cosine":
        cycle = epochs / schedule.cycles
        place = (epoch if schedule.per == "iteration" else math.floor(epoch)) % cycle
        return schedule.min_lr + (base - schedule.min_lr) * (1 + math.cos(math.pi * place / cycle)) / 2
    return base
