"""Makes processes the ranks of a `World`: they meet, form groups, and check that they agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version

import torch
import torch.distributed as dist

from lookaround_ddp.averaging import expect_lost_ranks, neighbours
from lookaround_ddp.config import Config, NodesConfig, changed_keys
from lookaround_ddp.distributed.environment import number_in, place_in_job
from lookaround_ddp.distributed.heartbeat import Heartbeat, LostRanks, lost_connection, short
from lookaround_ddp.distributed.listening import listen
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import Preempted, UserError, told

VERSIONS = ("lookaround_ddp", "torch", "torchvision", "timm")  # packages whose versions all ranks must share


@contextmanager
def join(config: Config) -> Iterator[World]:
    """Joins the processes that torchrun started, or runs as one process without it.

    Raises:
        UserError: that many processes cannot share the replicas (before this rank waits for any other), or the ranks
            have different configs or package versions (on every rank).
        LostRanks: a collective failed, since a rank died, failed, or did not come to it within `timeout`.
    """
    rank, size, local_rank = place_in_job(os.environ)
    replicas = len(config.replicas)
    check_size(size, replicas)
    nodes, there = (os.environ.get(name, "1") for name in ("LOOKAROUND_NODES", "GROUP_WORLD_SIZE"))
    if nodes != there and "LOOKAROUND_NODES" in os.environ:
        raise UserError(
            f"{there} of {nodes} nodes take part: do their clocks agree? torchrun takes a node whose clock is 15 s "
            "late for dead"
        )
    device, backend = _device(local_rank)
    if device.type == "cuda":
        _choose_kernels(config.deterministic, config.precision)
    if size == 1:
        yield World(0, 1, replicas, device, "none")
        return
    heartbeat = _meet(rank, size, backend, config.timeout)
    try:
        world = World(rank, size, replicas, device, backend, heartbeat=heartbeat)
        _agree(world, config)  # before groups are made, which would hang if the ranks disagreed on their shape
        yield _with_groups(world, timedelta(seconds=config.timeout), config.average.nodes)
    except Preempted:  # all ranks raise it together
        heartbeat.close()
        dist.destroy_process_group()
        raise
    except Exception as error:
        expect_lost_ranks()
        lost = heartbeat.explain(error)
        if lost is None:
            raise
        raise lost from error
    except BaseException as error:  # Ctrl-C, sys.exit
        expect_lost_ranks()
        heartbeat.leave(f"left ({told(error)})")
        raise
    heartbeat.close()
    dist.destroy_process_group()  # not after an error: it might wait for ranks that have gone; see `averaging.shutdown`


def check_size(processes: int, replicas: int) -> None:
    """Raises UserError unless so many processes can share the replicas."""
    if processes > replicas and processes % replicas:
        raise UserError(
            f"{processes} processes cannot share {replicas} replicas: start at most {replicas}, "
            f"or a multiple of {replicas}"
        )


def _meet(rank: int, size: int, backend: str, timeout: float) -> Heartbeat:
    """Waits until all ranks are there, and starts this one's heartbeat."""
    try:
        opened = listen(rank)
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        del opened  # the process group has it now
        return Heartbeat(rank, size, timeout)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise UserError(
                f"port {os.environ['MASTER_PORT']} of this host is in use, perhaps by another training: set "
                "MASTER_PORT to another, or let torchrun find one (--rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0)"
            ) from None
        if "Unable to find" in str(error):
            raise UserError(
                f"{short(error)}: GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME must name the interface that leads to the "
                f"other hosts ({os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']})"
            ) from None
        if not lost_connection(error):
            raise
        message = f"rank {rank} did not meet all {size} ranks within {timeout:g} s: {short(error)}"
        raise LostRanks(message, rank) from error


def _with_groups(world: World, timeout: timedelta, nodes: NodesConfig | None) -> World:
    """Adds the groups of the (replica, shard) mesh; a DeviceMesh's groups would ignore the timeout (30 minutes)."""
    mesh = torch.arange(world.size).view(-1, world.shards)
    by_replica, by_shard = mesh.tolist(), mesh.T.tolist()

    def groups(lists: list[list[int]]) -> dist.ProcessGroup:
        """Makes a group of each list of ranks, and returns this rank's."""
        own, _ = dist.new_subgroups_by_enumeration(lists, timeout=timeout)
        assert isinstance(own, dist.ProcessGroup)  # every rank is in one
        return own

    world = replace(world, background_group=groups(by_shard))
    if nodes is not None:
        counts = [len(replace(world, rank=ranks[0]).hosted) for ranks in by_replica]
        sets = neighbours(counts, nodes.size)
        near = groups([[ranks[index] for index in each] for ranks in by_shard for each in sets])
        world = replace(world, node_group=near)
    if world.shards == 1:
        return replace(world, replica_group=dist.group.WORLD)
    return replace(world, replica_group=groups(by_shard), shard_group=groups(by_replica))


def _agree(world: World, config: Config) -> None:
    """Raises UserError on all ranks if they have different configs or package versions."""
    values = config.model_dump(mode="json") | {"versions": {name: version(name) for name in VERSIONS}}
    everyone = world.gather(values)
    for rank, theirs in enumerate(everyone):
        differences = list(changed_keys(everyone[0], theirs))
        if differences:
            raise UserError(f"rank {rank} has another configuration than rank 0: {'; '.join(differences)}")


def processes_here(config: Config, nodes: int = 1) -> int:
    """Returns how many processes this node should have, as one of so many: for its GPUs, or for its cores.

    The variable NPROC may say another number.

    Raises:
        UserError: no number of them can share the replicas, or that of NPROC cannot.
    """
    replicas = len(config.replicas)
    if own := number_in(os.environ, "NPROC", "0"):
        if nodes == 1:  # of several, each may have another
            check_size(own, replicas)
        return own
    cores = min(len(os.sched_getaffinity(0)), -(-replicas // nodes))  # a CPU is no faster with shards
    return processes_per_node(replicas, torch.cuda.device_count() or cores, nodes)


def idle_gpus(config: Config, processes: int) -> str | None:
    """Returns a line on GPUs of this node that have no process; None if all have one."""
    devices = torch.cuda.device_count()
    if processes >= devices:
        return None
    return f"{devices - processes} of {devices} GPUs stay idle: {len(config.replicas)} replicas can use {processes}"


def processes_per_node(replicas: int, devices: int, nodes: int = 1) -> int:
    """Returns the process count per node, at most `devices`, with which an iteration takes the least time.

    If several do, the smallest of those that host replicas, or the largest of those that share them.

    Raises:
        UserError: no count can share the replicas, on so many nodes.
    """
    fitting = [n for n in range(1, devices + 1) if n * nodes <= replicas or n * nodes % replicas == 0]
    if not fitting:
        raise UserError(
            f"{nodes} nodes with {devices} devices each cannot share {replicas} replicas: take at most {replicas} "
            "nodes, or a number of devices that makes a multiple"
        )
    return min(fitting, key=lambda n: (-(-replicas // (n * nodes)), -(n * nodes // replicas), n))


def _choose_kernels(deterministic: bool, precision: str) -> None:
    """Selects deterministic or fast GPU kernels, and the precision of fp32 matrix products.

    PyTorch warns where a function has no deterministic kernel.
    """
    # the newer torch.backends.cuda.matmul.fp32_precision would leave this one behind, and who reads both gets an error
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # is read when cuBLAS is first used
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no stub has it; filling costs time
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def _device(local_rank: int) -> tuple[torch.device, str]:
    """Returns (device, backend): a GPU of its own and NCCL; or a GPU that ranks share, or the CPU, and gloo."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    count = torch.cuda.device_count()
    device = torch.device("cuda", local_rank % count)
    torch.cuda.set_device(device)
    own = int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))  # srun may show each task only its own GPUs
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > max(count, own)
    return device, "gloo" if shared else "nccl"
