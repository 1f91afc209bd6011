"""The processes of a run: ranks, devices, groups, heartbeats, preemption, SLURM."""

from lookaround_ddp.distributed.heartbeat import LostRanks
from lookaround_ddp.distributed.preemption import Stop
from lookaround_ddp.distributed.rendezvous import join, processes
from lookaround_ddp.distributed.slurm import adopt_step
from lookaround_ddp.distributed.world import World

__all__ = ["LostRanks", "Stop", "World", "adopt_step", "join", "processes"]
