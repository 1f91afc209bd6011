"""What a training would refuse, found by one process before the ranks are started."""

from __future__ import annotations

from pathlib import Path

import torch

from lookaround_ddp.checkpoint import locked, read_result, refuse_foreign_config
from lookaround_ddp.config import Config
from lookaround_ddp.data import left_out
from lookaround_ddp.distributed import World
from lookaround_ddp.training.setup import set_up
from lookaround_ddp.training.state import check_resumable
from lookaround_ddp.training.trial import try_out


def rehearse(config: Config, processes: int, alone: bool) -> None:
    """Opens the data, compares the config with the run folder's checkpoint, and trains a network on two images.

    It runs no code that the config names: the ranks do, once they have started.

    Args:
        processes: of the whole job.
        alone: no other host rehearses at this time, so that the run folder must be free.

    Raises:
        UserError: as `fit` would on every rank, and again whenever the ranks are restarted.
    """
    refuse_foreign_config(Path(config.out))
    run = set_up(config, World(0, 1, 1, torch.device("cpu"), "none"), left_out)
    shards = max(1, processes // len(config.replicas))
    run.batches.plan.check(shards)
    folder = Path(config.out)
    if alone and folder.is_dir():
        with locked(folder):
            pass
    found = (run.checkpoints.inspect(iteration)[0] for iteration in run.checkpoints.iterations())
    state = next((state for state in found if state), None)
    if state is not None:
        check_resumable(run.config, run.dataset, state)
    if read_result(folder) is None:
        try_out(run.config, run.dataset, shards)
