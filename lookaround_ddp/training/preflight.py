"""What a training would refuse, found by one process before the ranks are started."""

from __future__ import annotations

from pathlib import Path

import torch

from lookaround_ddp.checkpoint import Checkpoints, locked, read_result
from lookaround_ddp.config import Config
from lookaround_ddp.data import open_dataset
from lookaround_ddp.data.device import resolved
from lookaround_ddp.distributed import World
from lookaround_ddp.training.setup import along_time, build, lookaround
from lookaround_ddp.training.state import check_resumable


def rehearse(config: Config, processes: int, alone: bool) -> None:
    """Opens the data, builds one replica on the CPU, and compares the config with the run folder's checkpoint.

    Args:
        processes: of the whole job.
        alone: no other host rehearses at this time, so that the run folder must be free.

    Raises:
        UserError: as `fit` would on every rank, and again whenever the ranks are restarted.
    """
    dataset = open_dataset(config.data, config.seed)
    config = resolved(config, dataset)
    world = World(0, 1, 1, torch.device("cpu"), "none")
    batches, replicas = build(config, dataset, world)
    batches.plan.check(max(1, processes // len(config.replicas)))
    lookaround(config, replicas, batches.plan.iterations, world)
    along_time(config, replicas, batches.plan.iterations)
    folder = Path(config.out)
    if alone and folder.is_dir():
        with locked(folder):
            pass
    checkpoints = Checkpoints(folder, config.checkpoint.keep, world, print)
    state = next((state for i in checkpoints.iterations() if (state := checkpoints.inspect(i)[0])), None)
    if state is not None:
        check_resumable(config, dataset, state)
    read_result(config)
