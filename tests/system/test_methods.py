"""Every method from its config: what it leaves is what its definition says, on any number of ranks, and resumed."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lookaround_ddp.checkpoint.run_folder import run_config
from lookaround_ddp.distributed.rendezvous import join
from lookaround_ddp.evaluation.finished_runs import evaluate_run
from tests.support.methods import (
    ALONE,
    ONE,
    SEVERAL,
    TINY,
    TWO,
    alone,
    check_mean,
    checkpoint,
    left,
    record,
    several,
    undisturbed,
)
from tests.support.ranks import same_bits, same_state
from tests.support.runs import resumes, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undisturbed runs of all methods, trained when they are asked for."""
    return tmp_path_factory.mktemp("methods")


@pytest.mark.parametrize("method", SEVERAL)
def test_on_two_ranks_killed_and_resumed_the_bits_are_those_of_one(runs: Path, tmp_path: Path, method: str) -> None:
    """Killed in iteration 13, or 9 of a single network that trains until 10."""
    expected, out = left(several(runs, method)), tmp_path / "run"
    iteration = 9 if method.startswith("dart") else 13
    values = (*TINY, TWO, *SEVERAL[method])
    after, _ = resumes(out, *values, ranks=2, killed_at=iteration)
    assert after == iteration - iteration % 2
    assert left(out) == expected


@pytest.mark.parametrize("method", ALONE)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_single_network_resumes_bit_for_bit(runs: Path, tmp_path: Path, method: str, ranks: int) -> None:
    values, out = (ONE, *ALONE[method]), tmp_path / "run"
    expected = left(undisturbed(runs, f"one-{method}", values, ranks))
    after, _ = resumes(out, *TINY, *values, ranks=ranks, killed_at=13)
    assert after == 12
    assert left(out) == expected


@pytest.mark.parametrize("method", [*SEVERAL, "one-ema"])
def test_evaluate_repeats_the_result(runs: Path, method: str) -> None:
    run = undisturbed(runs, method, (ONE, *ALONE["ema"]), ranks=2) if method == "one-ema" else several(runs, method)
    config = run_config(run)
    result = json.loads((run / "result.json").read_text())
    torch.set_num_threads(1)
    with join(config) as world:
        scores = evaluate_run(run, config, world)
    assert scores
    assert scores == {name: result[name]["mean"] if name == "best" else result[name] for name in scores}
    scored = {"mean", "validation", "trajectory", "trajectory_validation", "replicas", "members", "ensemble"}
    assert {name for name in result if name in scored} == set(scores) - {"ensemble_validation", "best"}


def test_swa_is_the_mean_of_the_networks_at_its_snapshots(runs: Path) -> None:
    """One network from epoch 2 on, of 5 iterations: after 14, 18 (every 4; the checkpoints are after even ones)."""
    values = ("trajectory={name: swa, start: 2, every: 4}",)
    run = alone(runs, "swa", *values)
    check_mean(load_file(run / "trajectory.safetensors"), [checkpoint(run, 14), checkpoint(run, 18)])


def test_lookaround_with_swa_averages_the_means_at_round_ends(runs: Path) -> None:
    """Due after 9, 13, 17 of 20: rounds end after 9, 15, 18; phi is the mean of both replicas there."""
    run = undisturbed(runs, "swa-every", (TWO, *SEVERAL["swa"], "checkpoint.every=0.2"))
    phis = []
    for iteration in (9, 15, 18):
        one, other = (checkpoint(run, iteration, replica) for replica in (0, 1))
        phis.append({name: (one[name].double() + other[name].double()) / 2 for name in one})
    check_mean(load_file(run / "trajectory.safetensors"), phis)


def test_snapshots_are_the_networks_before_the_restarts(runs: Path) -> None:
    """Two cycles of 10 iterations."""
    run = alone(runs, "snapshots", "snapshots=true", "schedule.cycles=2")
    for number, iteration in ((1, 10), (2, 20)):
        assert same_state(load_file(run / "snapshots" / f"{number}.safetensors"), checkpoint(run, iteration))


def test_dart_begins_as_the_single_network(runs: Path) -> None:
    """For 10 iterations it is the equal-data baseline, bit for bit; then both replicas start from it."""
    dart, baseline = several(runs, "dart"), alone(runs, "sgdm")
    for iteration in (2, 8, 10):
        state = checkpoint(dart, iteration)
        assert same_state(state, checkpoint(baseline, iteration))
        assert same_state(state, checkpoint(dart, iteration, replica=1))
    apart = checkpoint(dart, 12), checkpoint(dart, 12, replica=1)
    assert not same_bits(apart[0]["fc.weight"], apart[1]["fc.weight"])
    path = dart / "checkpoints" / "12" / "replica-0.pt"
    momentum = torch.load(path, weights_only=True)["optimizer"]["state"][0]["momentum_buffer"]
    path = baseline / "checkpoints" / "12" / "replica-0.pt"
    assert not same_bits(momentum, torch.load(path, weights_only=True)["optimizer"]["state"][0]["momentum_buffer"])


def test_a_snapshot_of_a_single_network_is_that_network(runs: Path) -> None:
    """After 10 of the 15 iterations in which the others wait for it, and nothing else is due there."""
    dart = several(runs, "dart-snapshots")
    assert same_state(load_file(dart / "snapshots" / "1.safetensors"), checkpoint(dart, 10))


def test_a_round_that_has_begun_keeps_its_k(runs: Path) -> None:
    """A line of the record is written before the average step of its iteration: the next one has new distances."""
    run = several(runs, "k-over-time")
    distances = [line["distance"] for line in record(run, "loss")]
    assert [i for i in range(2, 21) if distances[i - 1] != distances[i - 2]] == [6, 11, 15, 19]
    phis = []
    for iteration in (14, 18):  # due after 12, 14, 16, 18 and 20; the end of the run is an average, too
        one, other = (checkpoint(run, iteration, replica) for replica in (0, 1))
        phis.append({name: (one[name].double() + other[name].double()) / 2 for name in one})
    phis.append({name: value.double() for name, value in load_file(run / "model.safetensors").items()})
    check_mean(load_file(run / "trajectory.safetensors"), phis)


def test_a_run_of_some_iterations(runs: Path, tmp_path: Path) -> None:
    """17 of 5 in an epoch: it ends as one of whole epochs does, and changes of its length are changes of the config."""
    run = several(runs, "iterations")
    result = json.loads((run / "result.json").read_text())
    assert (result["iterations"], result["epochs"]) == (17, 3.4)
    assert [line["iteration"] for line in record(run, "mean")] == [10, 17]
    assert (run / "LATEST").read_text() == "17\n"
    rates = [line["lr"] for line in record(run, "loss")]
    assert len(rates) == 17
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:] == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 17)) for i in range(5, 17)])
    one, other = (load_file(run / "model.safetensors")["fc.bias"], checkpoint(run, 17)["fc.bias"])
    both = (other.double() + checkpoint(run, 17, replica=1)["fc.bias"].double()) / 2
    torch.testing.assert_close(one.double(), both, rtol=0, atol=1e-7)
    for values, change in (
        (("iterations=18",), "iterations: 17 -> 18"),
        (("iterations=null",), "epochs: None -> 4; iterations: 17 -> None"),
    ):
        assert change in train(run, *TINY, TWO, *SEVERAL["iterations"], *values, expect=2)
    train(tmp_path / "short", *TINY, TWO, "iterations=2", "evaluate.every=1", "average.k=epoch")
    assert [line["iteration"] for line in record(tmp_path / "short", "mean")] == [2]


def test_a_run_folder_from_before_there_were_iterations(runs: Path, tmp_path: Path) -> None:
    """Its config.yaml does not have the key, nor have the checkpoints' configs: it is gone on with, and evaluated."""
    whole = undisturbed(runs, "plain", (TWO,))
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    for iteration in (16, 18, 20):
        assert "iterations" not in json.loads((old / f"checkpoints/{iteration}/run.json").read_text())["config"]
        if iteration > 16:
            shutil.rmtree(old / "checkpoints" / str(iteration))
    text = (old / "config.yaml").read_text()
    (old / "config.yaml").write_text(text.replace("iterations: null\n", "", 1))
    assert "\niterations" not in (old / "config.yaml").read_text()
    for name in ("result.json", "model.safetensors"):
        (old / name).unlink()
    assert "resumed after iteration 16" in train(old, *TINY, TWO)
    assert left(old) == left(whole)


def test_lookahead_moves_the_replicas(runs: Path) -> None:
    plain = undisturbed(runs, "plain", (TWO,))
    first, second = (checkpoint(run, 4)["fc.weight"] for run in (plain, several(runs, "lookahead-around")))
    assert not same_bits(first, second)


def test_an_average_of_each_replica_is_no_average_of_the_run(runs: Path) -> None:
    text = (several(runs, "ensemble-ema") / "metrics.jsonl").read_text()
    keys = [set(json.loads(line)) for line in text.splitlines() if "replicas" in line and "final" not in line]
    assert keys == [{"iteration", "epoch", "replicas", "ensemble"}] * 2


def test_lookahead_is_evaluated_on_its_slow_weights(runs: Path) -> None:
    """The last of 40 updates is number 40, one after the slow weights moved at 39."""
    run = alone(runs, "lookahead")
    state = torch.load(run / "checkpoints" / "20" / "replica-0.pt", weights_only=True)
    slow = load_file(run / "model.safetensors")
    assert not same_bits(slow["fc.weight"], state["model"]["fc.weight"])
    assert same_state(slow, state["shown"])


def test_members_of_an_ensemble_are_its_replicas(runs: Path) -> None:
    run = several(runs, "ensemble")
    for replica in (0, 1):
        state = load_file(run / "members" / f"{replica}.safetensors")
        assert same_state(state, checkpoint(run, 20, replica))
    assert not (run / "model.safetensors").exists()
    assert sorted(os.listdir(run / "members")) == ["0.safetensors", "1.safetensors"]
