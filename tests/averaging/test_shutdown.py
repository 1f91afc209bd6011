"""How a process ends: nothing of the backend's still runs by then, and the exit status is the program's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from lookaround_ddp import Lookaround
from tests.support.limits import TEST_TIMEOUT
from tests.support.ranks import run
from tests.support.runs import ROOT, free_port


def backend_threads() -> int:
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())


def after_the_group(rank: int, ranks: int, **how: Any) -> dict[str, Any]:
    """Averages in every way, ends the group, and goes on."""
    model = nn.Linear(3, 1)
    alone = [dist.new_group([each]) for each in range(ranks)][rank]
    around = Lookaround(model, k=2, shards=alone, **how)
    for _ in range(5):  # after the fifth nothing is under way
        model(torch.ones(2, 3))
        around.step()
    with around.averaged():
        mean = model.weight.detach().clone()
    del alone
    result: dict[str, Any] = {"while it lasts": backend_threads() > 0}
    dist.barrier()
    dist.destroy_process_group()
    result["left"] = backend_threads()
    for name in ("average", "restart", "synchronize_shards"):
        with pytest.raises(RuntimeError) as caught:
            getattr(around, name)()
        result[name] = str(caught.value)
    result["weights"], result["mean"] = around.models[0].weight.detach(), mean
    return result


def delayed(rank: int, ranks: int) -> dict[str, Any]:
    return after_the_group(rank, ranks, delay=1)


@pytest.mark.parametrize("worker", [after_the_group, delayed])
@pytest.mark.parametrize("ranks", [1, 3])
def test_destroying_the_group_ends_the_backends_threads(worker: Any, ranks: int) -> None:
    """Though a `Lookaround` is still there; it refuses to average, and does not take this rank for the only one."""
    for result in run(worker, ranks):
        assert result["while it lasts"]
        assert result["left"] == 0
        for name in ("average", "restart", "synchronize_shards"):
            assert "has been destroyed" in result[name], name
        assert torch.equal(result["weights"], result["mean"])


UNDER_WAY = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from lookaround_ddp import Lookaround

dist.init_process_group({backend})
model = nn.Sequential(*[nn.Linear(1500, 1500) for _ in range(6)])
around = Lookaround(model, k=2, {how})
for _ in range(2):
    model(torch.ones(1, 1500))
    around.step()
{end}
"""

JOINED = """
import atexit, os, sys
from pathlib import Path

def backend_threads():  # tests.averaging.test_shutdown's, which imports the package too soon
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

def last():
    os._exit(100 if not there else backend_threads())

there = False
atexit.register(last)  # before the others, and so called after them
from lookaround_ddp.config.load import make_config
from lookaround_ddp.distributed import join

with join(make_config({{}})) as world:
    assert world.gather(world.rank) == [0, 1, 2]
    there = backend_threads() > 0
    {end}
"""


def statuses(program: str, ranks: int) -> list[int]:
    """With which the program ends on each rank."""
    root = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, **root, **job, "RANK": str(rank)})
        for rank in range(ranks)
    ]
    try:
        return [process.wait(TEST_TIMEOUT) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("backend", "how", "end", "status"),
    [
        ("", "delay=1", "", 0),
        ("'gloo'", "delay=1", "sys.exit(7)", 7),
        ("'gloo'", "delay=1", "raise ValueError", 1),
        ("'gloo'", "delay=1", "dist.destroy_process_group()", 0),
    ],
)
def test_a_program_may_end_while_an_average_is_under_way(backend: str, how: str, end: str, status: int) -> None:
    assert statuses(UNDER_WAY.format(backend=backend, how=how, end=end), 3) == [status] * 3


@pytest.mark.parametrize("end", ["", "raise ValueError", "raise KeyboardInterrupt", "sys.exit(5)"])
def test_the_trainer_leaves_no_thread_of_the_backend_behind(end: str) -> None:
    """Whether or not it ends well. (Where ranks share a replica, DDP keeps its group.)"""
    assert statuses(JOINED.format(end=end), 3) == [0] * 3


AN_OPTIMIZER_AFTER_THE_GROUP = """
import torch, torch.distributed as dist
from pathlib import Path
from lookaround_ddp import Lookaround
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=0, world_size=1)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
around = Lookaround(model, k=1)
optimizer.zero_grad()
model(torch.ones(2, 3)).sum().backward()
optimizer.step()
around.step()
def threads():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())
before = threads()
dist.destroy_process_group()
print(before > 0, threads())
"""


def test_the_first_optimizer_keeps_no_group() -> None:
    """Torch imports what it needs with it, and of that some functions have the group of that moment as a default."""
    program = AN_OPTIMIZER_AFTER_THE_GROUP.format(port=free_port())
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TEST_TIMEOUT
    )
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr
