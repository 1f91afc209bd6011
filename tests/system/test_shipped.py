"""What a finished run left is compared with its checksums and its config: no other number comes of a changed file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lookaround_ddp.cli import main
from lookaround_ddp.config.schema import DataConfig
from lookaround_ddp.data import open_dataset
from lookaround_ddp.evaluation import read_classifier
from tests.support.runs import TINY

EMA = (*TINY, "data.validation=20", "trajectory.name=ema", "trajectory.decay=0.5")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs a and b of two seeds, and `never`, an ensemble of its replicas."""
    folder = tmp_path_factory.mktemp("shipped")
    for name, values in {"a": EMA, "b": (*EMA, "seed=1"), "never": (*TINY, "average.k=never")}.items():
        main(["train", f"out={folder}/{name}", *values])
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "a", tmp_path / "a"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    main([*map(str, arguments)])
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def readers(run: Path, other: Path) -> list[tuple[str | Path, ...]]:
    return [
        ("evaluate", run),
        ("ensemble", other, run),
        ("soup", run, "--recipe=uniform"),
        ("report", run),
        ("analyze", "sharpness", run, "--hessian-images=0", f"--out={run}/s"),
    ]


def flip(path: Path) -> None:
    """Changes bit 24 of the last fp32 number in a file of weights."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Changes values in a YAML or JSON file."""
    read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    values = read(path.read_text())
    change(values)
    path.write_text(write(values))


def config_value(**values: Any) -> Callable[[Path, Path], None]:
    """Changes values in the config of a run; data__size is data.size."""

    def changed(run: Path, other: Path) -> None:
        for name, value in values.items():
            *section, key = name.split("__")
            edit(run / "config.yaml", lambda own, s=section, k=key, v=value: (own[s[0]] if s else own).update({k: v}))

    return changed


NOT_ONE = "and {run}/config.yaml are not of one run "
DAMAGES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a bit of the model": (
        lambda run, other: flip(run / "model.safetensors"),
        "{run}/model.safetensors is not what the run left (its checksum differs)",
    ),
    "a bit of the average along time": (
        lambda run, other: flip(run / "trajectory.safetensors"),
        "{run}/trajectory.safetensors is not what the run left (its checksum differs)",
    ),
    "another run's model": (
        lambda run, other: shutil.copy(other / "model.safetensors", run),
        "{run}/model.safetensors " + NOT_ONE + "(seed: 1 -> 0)",
    ),
    "another network of the same run": (
        lambda run, other: shutil.copy(run / "trajectory.safetensors", run / "model.safetensors"),
        "{run}/model.safetensors is not what the run left (its checksum differs)",
    ),
    "another mean and std": (
        config_value(data__mean=[0.9], data__std=[0.1]),
        "{run}/result.json " + NOT_ONE + "(data.mean: None -> [0.9]; data.std: None -> [0.1])",
    ),
    "another size": (config_value(data__size=12), "{run}/result.json " + NOT_ONE + "(data.size: None -> 12)"),
    "another seed": (config_value(seed=3), "{run}/result.json " + NOT_ONE + "(seed: 0 -> 3)"),
    "a digit of the result": (
        lambda run, other: edit(run / "result.json", lambda result: result["mean"].update(top1=99.0)),
        "{run}/result.json is damaged (its checksum differs)",
    ),
    "a result without its own checksum": (
        lambda run, other: edit(run / "result.json", lambda result: result.pop("digest")),
        "{run}/result.json is damaged (its checksum differs)",
    ),
    "another run's result": (
        lambda run, other: shutil.copy(other / "result.json", run),
        "{run}/result.json " + NOT_ONE + "(seed: 1 -> 0)",
    ),
    "a line of the record": (
        lambda run, other: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("1", "2")),
        "{run}/metrics.jsonl is not what the run left (its checksum differs)",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_was_changed_is_refused(
    runs: Path,
    run: Path,
    damage: Callable[[Path, Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(run, runs / "b")
    for command in readers(run, runs / "b"):
        line = mistake(capsys, *command)
        assert line.startswith("error: " + message.format(run=run)), command
        assert "put " in line


def test_what_may_differ_and_what_has_no_checksums(runs: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values that decide no weights; a run of before there were checksums, and before models knew their config."""
    commands = readers(run, runs / "b")[:-1]
    expected = [said(capsys, *command) for command in commands]
    config_value(out="elsewhere", timeout=7, data__root="nowhere", data__workers=0, evaluate__every=2)(run, run)
    assert [said(capsys, *command) for command in commands] == expected
    edit(run / "result.json", lambda result: [result.pop(key) for key in ("digest", "files", "config")])
    assert [said(capsys, *command) for command in commands] == expected
    shutil.rmtree(run / "checkpoints")
    path = run / "model.safetensors"
    save_file(load_file(path), path, {"lookaround_ddp": json.dumps({"classes": 10, "channels": 1, "start": "x"})})
    assert said(capsys, *commands[0]) == expected[0]


def test_members_of_an_ensemble_are_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(runs / "never", tmp_path / "never"))
    flip(run / "members" / "1.safetensors")
    for command in (("evaluate", run), ("ensemble", run), ("report", run)):
        assert f"{run}/members/1.safetensors is not what the run left" in mistake(capsys, *command)


def test_what_was_made_of_runs_is_compared(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soup, mixed = tmp_path / "soup", tmp_path / "mixed"
    said(capsys, "soup", runs / "a", "--recipe=uniform", "--out", soup)
    said(capsys, "ensemble", runs / "a", runs / "b", "--out", mixed)
    assert said(capsys, "evaluate", soup).startswith("mean top-1")
    said(capsys, "report", soup, mixed)
    flip(soup / "model.safetensors")
    assert "soup/model.safetensors is not what the run left" in mistake(capsys, "evaluate", soup)
    edit(mixed / "result.json", lambda result: result["ensemble"]["logits"].update(top1=99.0))
    assert "mixed/result.json is damaged (its checksum differs)" in mistake(capsys, "report", soup.parent / "mixed")


def test_scores_of_replicas_are_of_one_checkpoint(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest has a damaged file: all are of the one before, as the run itself scored them then."""
    run = tmp_path / "run"
    main(["train", f"out={run}", *TINY, "evaluate.every=1", "evaluate.replicas=true"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (five,) = (line["replicas"] for line in lines if line["iteration"] == 5 and "replicas" in line)
    flip(run / "checkpoints" / "10" / "replica-2.pt")
    printed = said(capsys, "evaluate", run)
    assert "checkpoint 10 is damaged (replica-2.pt: its checksum differs): passed over for the one before" in printed
    for number, score in enumerate(five):
        assert (
            f"iteration 5's replica {number} top-1 {score['top1']:.2f} top-5 {score['top5']:.2f} NLL {score['nll']:.4f}"
            in printed
        )


def test_a_shipped_file_classifies_alone(runs: Path) -> None:
    """As often right as the run says of all 797 test images; they are RGB here, and it is shown grey ones."""
    test = open_dataset(DataConfig(), 0).test
    logits = read_classifier(runs / "a" / "model.safetensors").logits(
        [test.image(index).convert("RGB") for index in range(len(test))]
    )
    right = (logits.argmax(1) == torch.tensor(test.labels)).double().mean().item()
    assert 100 * right == pytest.approx(json.loads((runs / "a" / "result.json").read_text())["mean"]["top1"], abs=0.13)
