"""A checkpoint under way: it holds the state of its moment, there is one at most, and its errors reach all ranks."""

from __future__ import annotations

import copy
import errno
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lookaround_ddp.checkpoint import part_file, writer
from lookaround_ddp.checkpoint.checkpoints import Checkpoints
from lookaround_ddp.checkpoint.writer import snapshot
from lookaround_ddp.config.load import make_config
from lookaround_ddp.data.batches import BatchPlan, Iterations
from lookaround_ddp.data.datasets import open_dataset
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed.world import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.training.replica import Replica
from tests.support.ranks import run, same_bits

ALONE = World(0, 1, 2, torch.device("cpu"), "none")


class Values:
    """A part that is a dict."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = state


def checkpoints(folder: Path, world: World = ALONE) -> Checkpoints:
    return Checkpoints(folder, 3, world, print)


def restored(folder: Path, **names: str) -> dict[str, Any]:
    part = Values()
    checkpoints(folder).restore({"replica-0.pt": part}, lambda state: None)
    return part.values


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Files are not written before the function that it gives is called, or the block ends."""
    go = threading.Event()

    def later(path: Path, *rest: Any) -> str:
        go.wait(60)
        return part_file.write_part(path, *rest)

    monkeypatch.setattr(writer, "write_part", later)
    try:
        yield go.set
    finally:
        go.set()
        monkeypatch.undo()


def test_it_holds_the_replica_of_its_moment_while_that_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, statistics, momentum, slow weights and the scaler; and the state beside them."""
    data = open_dataset(make_config({}).data, seed=0)
    values = {"precision": "fp16", "channels_last": True, "replicas": [["none"]] * 2}
    config = make_config({**values, "optimizer": {"momentum": 0.9, "lookahead": {"k": 2, "momentum": "pullback"}}})
    batches = Iterations(
        data.train, BatchPlan(100, 20, 0, True), {0: train_pipelines(config.augment, ["none"], data, 0.0)}
    )
    replica, saving = Replica(config, 0, data, ALONE), checkpoints(tmp_path)
    state = {"scores": {"mean": 1.0}}
    for iteration in range(3):
        replica.step(batches[iteration][0], iteration, 0.1)
    expected = copy.deepcopy(replica.state_dict())
    with held(monkeypatch) as go:
        saving.begin(3, {"replica-0.pt": replica}, state)
        for iteration in range(3, 5):
            replica.step(batches[iteration][0], iteration, 0.1)
        state["scores"]["mean"] = 2.0
        assert not saving.written
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".writing-3"]
        go()
        saving.finish()
    part = Values()
    assert checkpoints(tmp_path).restore({"replica-0.pt": part}, lambda state: None)["scores"] == {"mean": 1.0}
    assert alike(part.values, expected)
    assert not alike(replica.state_dict(), expected)
    replica.load_state_dict(part.values)
    assert alike(replica.state_dict(), expected)


def alike(one: Any, other: Any) -> bool:
    """Equal in all bits, strides included."""
    if isinstance(one, Tensor):
        return same_bits(one, other) and one.stride() == other.stride()
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


def test_a_snapshot_is_of_other_memory_once_for_each_tensor() -> None:
    """Whatever holds the tensors; tied ones stay tied, and what PyTorch writes beside a state dict stays there."""
    tied = torch.arange(12.0).view(3, 4).t()
    state: Any = OrderedDict(a=tied, b={0: [tied, (torch.ones(2), "text", None, 3)]})
    state._metadata = {"version": 2}
    copied = snapshot(state)
    assert alike(copied, state)
    assert type(copied) is OrderedDict
    assert copied._metadata == {"version": 2}
    assert copied["b"][0][0] is copied["a"]
    tied.zero_()
    state["b"][0][1][0].zero_()
    assert copied["a"][3, 2] == 11
    assert copied["b"][0][1][0].sum() == 2


def test_one_at_most_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one waits until it is whole."""
    saving = checkpoints(tmp_path)
    with held(monkeypatch) as go:
        saving.begin(1, {"replica-0.pt": Values(x=torch.ones(1))}, {})
        threading.Timer(0.3, go).start()
        saving.begin(2, {"replica-0.pt": Values(x=2 * torch.ones(1))}, {})
        assert (tmp_path / "LATEST").read_text() == "1\n"
        assert restored(tmp_path)["x"] == 1
        saving.finish()
    assert restored(tmp_path)["x"] == 2
    assert saving.under_way is None
    saving.finish()  # there is none: nothing happens


@pytest.mark.parametrize("largest", [1, 10_000_000], ids=["small", "large"])
def test_a_run_that_ends_by_an_error_lets_go_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """In the middle of its first file; the thread has ended then, and of the files nothing is left."""
    saving, writing, go = checkpoints(tmp_path), threading.Event(), threading.Event()
    write = part_file._Hashed.write

    def slow(self: Any, content: bytes) -> int:
        writing.set()
        go.wait(60)
        return write(self, content)

    monkeypatch.setattr(part_file._Hashed, "write", slow)
    saving.begin(4, {f"replica-{j}.pt": Values(x=torch.ones(largest)) for j in range(2)}, {})
    assert writing.wait(60)
    thread = saving.under_way.writer._thread
    threading.Timer(0.1, go.set).start()
    saving.give_up()
    assert not thread.is_alive()
    assert list((tmp_path / "checkpoints").iterdir()) == []
    saving.give_up()  # there is none any more


def failing(rank: int, ranks: int, folder: str) -> list[Any]:
    """Rank 1 finds no room for its file of checkpoint 2; then there is room again."""
    world = World(rank, ranks, 2, torch.device("cpu"), "gloo")
    saving, said = checkpoints(Path(folder), world), []
    own = {f"replica-{rank}.pt": Values(x=torch.tensor(float(rank)))}
    write, full = part_file._Hashed.write, False

    def no_room(self: Any, content: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    part_file._Hashed.write = no_room
    for iteration in (1, 2, 3):
        full = rank == 1 and iteration == 2
        saving.begin(iteration, own, {})
        try:
            saving.finish()
        except UserError as error:
            said.append(str(error))
        world.barrier()
        said.append(sorted(path.name for path in Path(folder, "checkpoints").iterdir()))
        world.barrier()
    return said


def test_an_error_of_one_rank_is_told_on_all_and_the_checkpoints_before_stay(tmp_path: Path) -> None:
    message = f"{tmp_path}/checkpoints/.writing-2/replica-1.pt: No space left on device (rank 1)"
    assert run(failing, 2, str(tmp_path)) == [[["1"], message, ["1"], ["1", "3"]]] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_tensors_are_those_of_the_moment(tmp_path: Path) -> None:
    """The host does not wait for the copies, and what the GPU does next does not reach them."""
    gpu = torch.device("cuda")
    tensor = torch.zeros(2**24, device=gpu)
    saving = checkpoints(tmp_path, World(0, 1, 2, gpu, "none"))
    for iteration in (1, 2):  # the second time the pinned memory is there
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(50):
                tensor.add_(1)
            saving.begin(iteration, {"replica-0.pt": Values(x=tensor, same=tensor)}, {})
            tensor.zero_()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        saving.finish()
        found = restored(tmp_path)
        assert (found["x"] == 50).all()
        assert found["same"].data_ptr() == found["x"].data_ptr()
