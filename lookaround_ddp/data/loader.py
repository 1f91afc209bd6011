"""Batches as a pure function of (seed, iteration): any worker of any rank computes the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils import data

from lookaround_ddp.data.workers import context, ended, failure, prepare_worker, started
from lookaround_ddp.errors import BatchError, UserError, told, trace_below


class Answers(data.Dataset[Any]):
    """A dataset whose errors are values: DataLoader would put a worker's traceback around what it raises."""

    def __init__(self, dataset: data.Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: int) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return UserError(str(error))  # a subclass with arguments of its own could not be unpickled by the rank
        except BatchError as error:
            return BatchError(error.message, error.trace)
        except Exception as error:
            return BatchError(told(error), trace_below(error))


def load(dataset: data.Dataset[Any], keys: Sequence[int] | range, workers: int, device: torch.device) -> Iterator[Any]:
    """Yields dataset[key] for each key in turn, computed ahead by worker processes if there are any.

    Args:
        device: what is loaded goes there; for a GPU it is put into pinned memory.

    Raises:
        UserError: the dataset raised it, in this process or in a worker; or /dev/shm is full.
        BatchError: the dataset raised it, or any other error; or a worker has died.
    """
    loader = data.DataLoader(
        Answers(dataset),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",  # a copy from pinned memory does not make the host wait
        multiprocessing_context=context() if workers else None,
        worker_init_fn=prepare_worker,
        collate_fn=_as_it_is,
    )
    with ended() as processes:
        try:
            with started(processes):
                answers = iter(loader)
            for answer in answers:
                if isinstance(answer, (UserError, BatchError)):
                    raise answer
                yield answer
        except (UserError, BatchError):
            raise
        except Exception as error:
            raise failure(error, processes) from error


def _as_it_is(value: Any) -> Any:
    return value
