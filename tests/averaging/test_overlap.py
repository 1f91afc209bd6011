"""An average step that overlaps the next forward pass: the same bits, and nothing waits for more than it uses."""

from __future__ import annotations

import copy
import inspect
import re
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lookaround_ddp import Lookaround
from lookaround_ddp.averaging import overlap
from lookaround_ddp.averaging.collectives import average_
from lookaround_ddp.averaging.overlap import ForwardOverlap, InThread
from tests.averaging.test_algorithm_1 import train
from tests.support.limits import TEST_TIMEOUT
from tests.support.ranks import run, same_bits
from tests.support.trainings import CASES

HOW = ("nothing", "torch.compile", "torch.compile, a part", "torch.compile, a class", "TorchScript", "CUDA graphs")
PATIENCE = 20  # seconds, after which what should have come has not


def slow_exchange(*args: Any, on_tensor_done: Callable[[int], None] | None = None, **kwargs: Any) -> Tensor | None:
    """Takes 2 ms more for each tensor, so that a forward pass overtakes it."""

    def late(column: int) -> None:
        time.sleep(0.002)
        if on_tensor_done is not None:
            on_tensor_done(column)

    return average_(*args, on_tensor_done=late, **kwargs)


class Net(nn.Module):
    """Weights that are used in other ways than by calling their module: attention's, a checkpointed block's, tied."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(5)
        self.register_parameter("again", self.block[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(x + checkpoint(self.block, x, use_reentrant=False))
        return x.mean(1) @ self.again.T


def trained_net(rank: int, hosted: int, shards: Any = None, **options: Any) -> list[Any]:
    """Weights after 7 steps, k = 2, of the replicas that this rank hosts, on random images."""
    torch.manual_seed(0)
    models = [Net() for _ in range(hosted)]
    around = Lookaround(models, k=2, shards=shards, measure=True, **options)
    networks = models if shards is None else [DistributedDataParallel(m, process_group=shards) for m in models]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in models]
    for iteration in range(7):
        for number, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
            torch.manual_seed(100 * (rank * hosted + number) + iteration)
            optimizer.zero_grad()
            network(torch.randn(6, 5, 8)).square().mean().backward()
            optimizer.step()
        around.step()
    assert around.distances is not None or options.get("delay")
    return [[value.clone() for value in model.state_dict().values()] for model in models]


def worker(rank: int, ranks: int) -> dict[str, Any]:
    from lookaround_ddp.averaging import average_step

    pair, one = dist.new_group([0, 1]), range(rank, rank + 1)
    half = dist.new_subgroups_by_enumeration([[0, 1], [2, 3]])[0]
    across = dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])[0]
    beside = [dist.new_group([0, 1]), dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])[0]]
    results: dict[str, Any] = {}
    for name, hide in (("shown", False), ("hidden", True)):
        overlap.BUCKET_BYTES = 64
        average_step.average_ = slow_exchange if hide else average_
        results[f"{name} nets"] = trained_net(rank, 1, hide=hide)
        results[f"{name} hosted"] = trained_net(rank, 2, hide=hide)
        results[f"{name} shards"] = trained_net(rank // 2, 1, half, group=across, beside=beside[1], hide=hide)
        if rank < 2:
            results[name] = {case: train(CASES[case], one, pair, beside=beside[0], hide=hide) for case in CASES}
    results["refused"] = refusals(rank)
    average_step.average_ = average_
    results["hides"] = {how: hides(rank, how) for how in HOW}
    return results


def refusals(rank: int) -> str:
    """What is said of a step without a forward pass through the model."""
    model = nn.Linear(3, 3)
    around = Lookaround(model, k=1, hide=True)
    around.step()
    model.forward(torch.ones(3))  # calls no hooks
    try:
        around.step()
    except RuntimeError as error:
        around.wait()
        return str(error)
    return "nothing"


class CompiledForward(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)

    @torch.compile(backend="eager")
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


def hides(rank: int, how: str) -> tuple[bool, list[str], Tensor]:
    """Whether an average step overlaps a model's forward pass, what is warned of, and the mean."""
    model: Any = nn.Linear(8, 8)  # two groups of bytes, after each of which ranks meet that hide
    if how == "torch.compile" and rank > 0:
        model.compile(backend="eager")
    if how == "torch.compile, a class":
        model = nn.Sequential(CompiledForward())
    if how == "torch.compile, a part":
        model = nn.Sequential(nn.Linear(8, 8), torch.compile(model, backend="eager"))
    if how == "TorchScript":
        model = nn.Sequential(torch.jit.script(model))
    if how == "CUDA graphs":
        model.forward = graphed(model.forward)
    around = Lookaround(model, k=1, hide=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        around.step()
        hidden_now = around._average.overlap is not None
        around.wait()
        around.step()
        around.wait()
    caught = [warning for warning in caught if warning.category is UserWarning]
    assert all(warning.filename == __file__ for warning in caught)
    return hidden_now, [str(warning.message) for warning in caught], next(model.parameters()).detach()


def graphed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Named as torch.cuda.make_graphed_callables names it."""

    def new_fwd(*inputs: Tensor) -> Tensor:
        return forward(*inputs)

    new_fwd.__qualname__ = "make_graphed_callables.<locals>.make_graphed_forward.<locals>.new_fwd"
    return new_fwd


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return run(worker, 4, timeout=TEST_TIMEOUT)


@pytest.mark.parametrize("case", CASES)
def test_no_bit_differs_from_an_average_step_that_is_waited_for(on_ranks: list[dict[str, Any]], case: str) -> None:
    """Whose weights test_averaging.py holds against the paper's algorithm."""
    for rank in (0, 1):
        (shown,), (late,) = on_ranks[rank]["shown"][case], on_ranks[rank]["hidden"][case]
        assert shown["averaged"] == late["averaged"]
        assert all(same_bits(value, late["state"][key]) for key, value in shown["state"].items())


@pytest.mark.parametrize("what", ["nets", "hosted", "shards"])
def test_no_bit_differs_in_other_networks_and_placements(on_ranks: list[dict[str, Any]], what: str) -> None:
    for results in on_ranks:
        for shown, late in zip(results[f"shown {what}"], results[f"hidden {what}"], strict=True):
            assert all(same_bits(a, b) for a, b in zip(shown, late, strict=True))


def test_the_replicas_differ(on_ranks: list[dict[str, Any]]) -> None:
    """So that a mean that came too late, or not at all, would show above."""
    first, second = (on_ranks[rank]["shown nets"][0] for rank in (0, 1))
    assert not same_bits(first[0], second[0])


def test_a_step_without_a_forward_pass_is_refused(on_ranks: list[dict[str, Any]]) -> None:
    for results in on_ranks:
        assert results["refused"].startswith("a step without a forward pass through the model")


@pytest.mark.parametrize("how", HOW)
def test_what_cannot_wait_for_a_weight_is_averaged_before_the_step_returns(
    on_ranks: list[dict[str, Any]], how: str
) -> None:
    """And said once. Ranks need not agree on it: rank 0 is not compiled."""
    for rank, results in enumerate(on_ranks):
        hidden_now, said, weight = results["hides"][how]
        expected = how == "nothing" or (how == "torch.compile" and rank == 0)
        assert hidden_now is expected
        assert len(said) == (0 if expected else 1)
        assert all(text.startswith(f"hide=True has no effect with {how.partition(',')[0]},") for text in said)
        assert (weight == 1.5).all()  # of 0, 1, 2 and 3


def test_how_pytorch_names_a_forward_pass_that_it_captured() -> None:
    """What `overlap_obstacle` goes by."""
    code = inspect.getsource(torch.cuda.graphs.make_graphed_callables)
    assert re.search(r"func\.forward = make_graphed_forward\(", code)


def test_a_forward_pass_that_shows_no_weight_is_refused() -> None:
    """It may have read them before they came."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.copies = [self.weight.detach().clone()]

        def forward(self, images: Tensor) -> Tensor:
            return images * self.copies[0]

    model = Copies()
    exchange = Exchange(model)
    exchange.let(0)
    ForwardOverlap(InThread(exchange, 1), [model], [exchange.tensors])
    with pytest.raises(RuntimeError, match="used no weight where Lookaround could see it"):
        model(torch.ones(2))


class Exchange:
    """Arrivals that the test decides on: tensor n comes when `let(n)` is called."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = list(model.parameters())
        self.may = [threading.Event() for _ in self.tensors]

    def __call__(self, done: Callable[[int], None]) -> Tensor:
        for number, (tensor, may) in enumerate(zip(self.tensors, self.may, strict=True)):
            if not may.wait(PATIENCE):
                raise TimeoutError(f"tensor {number} was waited for too early")
            tensor.copy_(torch.full_like(tensor, float(number)))
            done(number)
        return torch.tensor(7.0)

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self.may[number].set()


def test_a_layer_begins_before_the_next_ones_weights_are_there() -> None:
    """Weights and biases of three layers become 0 to 5; each layer's forward lets the next one's come."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    exchange = Exchange(model)
    overlapped = ForwardOverlap(InThread(exchange, 6), [model], [exchange.tensors])
    exchange.let(0, 1)
    for number in (0, 1):
        following = range(2 * number + 2, 2 * number + 4)
        model[number].register_forward_hook(lambda *_, numbers=following: exchange.let(*numbers))
    out = model(torch.tensor([[1.0, 2.0]]))
    # (0, 0) + 1 = (1, 1); 2 * 2 + 3 = 7; 4 * 14 + 5 = 61
    assert out.tolist() == [[61.0, 61.0]]
    assert overlapped.finished
    assert overlapped.end() == torch.tensor(7.0)


def test_the_model_is_as_before_when_all_has_arrived() -> None:
    model = nn.Linear(2, 2)
    exchange = Exchange(model)
    overlapped = ForwardOverlap(InThread(exchange, 2), [model], [exchange.tensors])
    exchange.let(0, 1)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(1, 3))
    assert not overlapped.finished
    overlapped.end()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert copy.deepcopy(model).weight.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_state_dict_waits() -> None:
    model = nn.Linear(2, 2)
    exchange = Exchange(model)
    ForwardOverlap(InThread(exchange, 2), [model], [exchange.tensors])
    threading.Timer(0.2, partial(exchange.let, 0, 1)).start()
    assert model.state_dict()["bias"].tolist() == [1.0, 1.0]


def test_what_fails_in_the_thread_is_raised_where_it_is_waited_for() -> None:
    def broken(done: Callable[[int], None]) -> Tensor:
        done(0)
        raise RuntimeError("Connection closed by peer")

    model = nn.Linear(2, 2)
    ForwardOverlap(InThread(broken, 2), [model], [list(model.parameters())])
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        model(torch.ones(2))
