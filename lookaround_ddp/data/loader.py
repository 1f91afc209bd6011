"""Batches as a pure function of (seed, iteration): any worker of any rank computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import data

from lookaround_ddp.data.workers import context, prepare
from lookaround_ddp.errors import UserError


class Answers(data.Dataset[Any]):
    """A dataset whose UserErrors are values: DataLoader would put a worker's traceback around what it raises."""

    def __init__(self, dataset: data.Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: int) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return UserError(str(error))  # a subclass with arguments of its own could not be unpickled by the rank


def load(dataset: data.Dataset[Any], keys: Sequence[int] | range, workers: int, device: torch.device) -> Iterator[Any]:
    """Yields dataset[key] for each key in turn, computed ahead by worker processes if there are any.

    Args:
        device: what is loaded goes there; for a GPU it is put into pinned memory.

    Raises:
        UserError: the dataset raised it, in this process or in a worker.
    """
    loader = data.DataLoader(
        Answers(dataset),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",  # a copy from pinned memory does not make the host wait
        multiprocessing_context=context() if workers else None,
        worker_init_fn=prepare,
        collate_fn=_as_it_is,
    )
    for answer in loader:
        if isinstance(answer, UserError):
            raise answer
        yield answer


def _as_it_is(value: Any) -> Any:
    return value
