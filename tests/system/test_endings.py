"""However a training with loader workers ends, its processes do, and a line names the rank and what it was."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lookaround_ddp.config.schema import DataConfig
from lookaround_ddp.data import open_dataset, workers
from tests.support.limits import TEST_TIMEOUT
from tests.support.processes import alive, loader_workers
from tests.support.runs import TINY, Job

safe = pytest.param(True, marks=pytest.mark.skipif(not workers.FORKS_SAFELY, reason="forks of this Python may hang"))
both = pytest.mark.parametrize("safely", [False, safe])


def break_down(image: Image.Image) -> Image.Image:
    """Fails as a replica does that diverged, on an image whose corner is dark."""
    if image.getpixel((8, 8)) < 20:
        raise FloatingPointError("divided by nothing")
    return image


def lose_memory() -> None:
    raise MemoryError


def lose_a_worker() -> None:
    multiprocessing.active_children()[0].kill()


def leave() -> None:
    sys.exit(7)


def press_twice() -> None:
    """Ctrl-C: the first asks the training to save and leave, the second is an order."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


KILLED = "stopped: a loader worker was killed by SIGKILL: most likely the machine ran out of memory: lower data.workers"
# way to end -> exit status, what its rank says in the end, and what the others say of it
WAYS: dict[str, tuple[Any, int, str, str]] = {
    "memory": (lose_memory, 1, "MemoryError", "failed (MemoryError)"),
    "worker": (lose_a_worker, 1, KILLED, "failed (a loader worker was killed by SIGKILL: most likely"),
    "exit": (leave, 7, "", "left (SystemExit: 7)"),
    "Ctrl-C": (press_twice, 130, "", "left (KeyboardInterrupt)"),
}


def prepare(way: str, safely: bool, victim: int, rank: int) -> None:
    """Lets the victim end in this way in its fourth iteration, amid a round."""
    workers.FORKS_SAFELY = safely
    if rank != victim:
        return
    from lookaround_ddp.training.replica import Replica

    step, left = Replica.step, [WAYS[way][0]]

    def ending(self: Replica, batches: Any, iteration: int, rate: float) -> Any:
        if iteration == 3 and left:
            print("workers:", *loader_workers(os.getpid()), flush=True)
            left.pop()()
        return step(self, batches, iteration, rate)

    Replica.step = ending  # type: ignore[method-assign]


@both
@pytest.mark.parametrize(("way", "ranks"), [("memory", 1), ("worker", 1), ("worker", 3), ("exit", 3), ("Ctrl-C", 1)])
def test_every_end_of_a_rank_is_the_end_of_all(tmp_path: Path, way: str, ranks: int, safely: bool) -> None:
    _, status, own, others = WAYS[way]
    victim = ranks // 2
    overrides = (*TINY, "data.workers=2", "data.pipeline=workers", "epochs=200", "timeout=20")
    job = Job("train", f"out={tmp_path}/run", *overrides, ranks=ranks, prepare=partial(prepare, way, safely, victim))
    codes = job.wait()
    assert codes == [status if rank == victim else 1 for rank in range(ranks)], job.said()
    said = job.said(victim)
    assert own in said.splitlines()[-1], said
    if ranks > 1:
        assert re.search(rf"stopped: ranks 0 and 2 waited in vain, .*: rank 1 {re.escape(others)}", job.said(0))
        assert "Traceback" not in job.said(0) + job.said(2)
    family = [int(pid) for pid in re.findall(r"workers: (\d+) (\d+)", said)[0]]
    deadline = time.monotonic() + TEST_TIMEOUT
    while any(map(alive, family)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("count", "ranks"), [(2, 3), (0, 1)])
def test_an_augmentation_that_fails_is_named_with_the_image(tmp_path: Path, count: int, ranks: int) -> None:
    """In the same words from a worker and without one; the traceback above them is that of the augmentation alone."""
    own = "replicas=[[crop],[hflip+tests.system.test_endings.break_down],[rotation]]"
    job = Job(
        "train",
        f"out={tmp_path}/run",
        *TINY,
        "data.pipeline=workers",
        f"data.workers={count}",
        own,
        "timeout=20",
        ranks=ranks,
    )
    assert job.wait() == [1] * ranks, job.said()
    line = (
        r"augmentation tests\.system\.test_endings\.break_down of image (\d+): FloatingPointError: divided by nothing"
    )
    said = job.said(ranks // 2)
    last = re.fullmatch(("rank 1: " if ranks == 3 else "") + f"stopped: {line}", said.splitlines()[-1])
    assert last, said
    assert open_dataset(DataConfig(), 0).train.image(int(last[1])).getpixel((8, 8)) < 20
    assert said.count("Traceback") == said.count('  File "') == 1, said
    if ranks == 3:
        assert re.search(rf"^stopped: ranks 0 and 2 waited in vain, .*: rank 1 failed \({line}\) \(", job.said(0), re.M)
