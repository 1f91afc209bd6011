"""The processes of a run: ranks, devices, groups, heartbeats, preemption, SLURM."""

from lookaround_ddp.distributed.heartbeat import LostRanks, lost_connection
from lookaround_ddp.distributed.preemption import PreemptionHandler, tell_agent
from lookaround_ddp.distributed.rendezvous import idle_gpus, join, processes_here
from lookaround_ddp.distributed.slurm import adopt_step
from lookaround_ddp.distributed.world import World

__all__ = [
    "LostRanks",
    "PreemptionHandler",
    "World",
    "adopt_step",
    "idle_gpus",
    "join",
    "lost_connection",
    "processes_here",
    "tell_agent",
]
