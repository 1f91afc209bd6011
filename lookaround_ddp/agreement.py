"""Whether ranks that must have the same weights do."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from lookaround_ddp.distributed import World
from lookaround_ddp.structure import mean_digest


def check_agreement(models: Sequence[nn.Module], buffers: Collection[str], iteration: int, world: World) -> None:
    """Compares the replicas after an average step, bit by bit. Collective.

    They are the same unless a device or a network computes wrongly; to train on would spread it.

    Args:
        models: the replicas that this rank hosts.
        buffers: names of those that are averaged beside the running statistics.

    Raises:
        RuntimeError: on all ranks, naming the first that has other weights than rank 0.
    """
    everyone = world.gather([mean_digest(model, buffers) for model in models])
    for rank, digests in enumerate(everyone):
        if set(digests) != {everyone[0][0]}:
            raise RuntimeError(
                f"after the average step of iteration {iteration} rank {rank} has other weights than rank 0: "
                "look for a faulty device there; the last checkpoint is from before"
            )
