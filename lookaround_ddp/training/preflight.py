"""What a training would refuse, found by one process before the ranks are started."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch

from lookaround_ddp.checkpoint import Checkpoints, locked, read_result, refuse_foreign_config
from lookaround_ddp.config import Config
from lookaround_ddp.data import make_batches, open_on_all_ranks
from lookaround_ddp.data.device import resolved
from lookaround_ddp.distributed import World
from lookaround_ddp.own_code import left_out
from lookaround_ddp.training.setup import set_up
from lookaround_ddp.training.state import check_resumable
from lookaround_ddp.training.trial import try_out


def run_preflight(config: Config, processes: int, alone: bool) -> None:
    """Opens the data, compares the config with the run folder's checkpoint, and trains a network on two images.

    It runs no code that the config names, and leaves out what it cannot look at without: the ranks do, once they have
    started.

    Args:
        processes: of the whole job.
        alone: no other host runs its preflight at this time, so that the run folder must be free.

    Raises:
        UserError: as `fit` would on every rank, and again whenever the ranks are restarted.
    """
    folder = Path(config.out)
    refuse_foreign_config(folder)
    if alone and folder.is_dir():
        with locked(folder):
            pass
    own = {what for what, _ in config.own_code()}
    if "dataset" in own:
        return
    world = World(0, 1, 1, torch.device("cpu"), "none")
    known = config.model_copy(update={"loss": "cross_entropy"})
    if "model" in own:
        dataset = open_on_all_ranks(known, world)
        known = resolved(known, dataset, left_out)
        plan = make_batches(known, dataset, world, left_out).plan
    else:
        run = set_up(known, world, left_out)
        dataset, known, plan = run.dataset, run.config, run.batches.plan
    shards = max(1, processes // len(config.replicas))
    plan.check(shards)
    checkpoints = Checkpoints(folder, config.checkpoint.keep, world, partial(print, file=sys.stderr))
    found = (checkpoints.inspect(iteration)[0] for iteration in checkpoints.iterations())
    state = next((state for state in found if state), None)
    if state is not None:
        check_resumable(known.model_copy(update={"loss": config.loss}), dataset, state)
    if read_result(folder) is None and "model" not in own:
        try_out(known, dataset, shards)
