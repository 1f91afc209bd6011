"""Every command of the README runs, in its order, in a fresh clone with its environment activated."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lookaround_ddp.config.load import load_config
from tests.support.limits import TEST_TIMEOUT
from tests.support.readme import README, blocks, commands, section
from tests.support.runs import ROOT, torchrun

PAGES = [
    path for path in sorted(ROOT.rglob("README.md")) if "node_modules" not in path.parts and ".venv" not in path.parts
]
ELSEWHERE = (
    "NNODES=2 ",
    "sbatch ",
    "bash launch/docker.sh",
)  # several machines, SLURM, containers: tests/system/cluster


@pytest.mark.timeout(3 * TEST_TIMEOUT)
def test_every_command(tmp_path: Path, venv: Path, activated: dict[str, str]) -> None:
    """But those on images of one's own, which test_own_images has. Trainings are cut short, tests collected alone."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True, timeout=TEST_TIMEOUT)
    (clone / ".venv").symlink_to(venv)
    marker = venv / "installed"  # with the test extras, which also serve where none are asked for
    marker.write_text(marker.read_text().split(" [")[0].rstrip() + " [test]\n")
    environment = activated | {"PYTHONPATH": str(clone)}
    del environment["VENV"]
    own = commands(section("Your own images"))
    here = [each for each in commands() if each not in own and not each.startswith(ELSEWHERE)]
    script = "\n".join(["set -e", *here])
    script = script.replace("bash launch/test.sh", "bash launch/test.sh --collect-only -q -n 0")
    script = re.sub(r"launch/(quickstart.sh|torchrun.sh digits/\S+)", r"launch/\1 epochs=2", script)
    assert script.count("epochs=2") == 3
    done = subprocess.run(
        ["bash", "-xc", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=2.5 * TEST_TIMEOUT
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path.name for path in (clone / "runs").iterdir()} >= {"quickstart-lookaround", "digits", "digits-sgdm"}


def test_the_library_example_under_torchrun(tmp_path: Path) -> None:
    """Every rank evaluates the same mean model, on images that none has trained on."""
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(example)
    said = torchrun(ranks=3, program=["example.py"], cwd=tmp_path)
    accuracies = dict(re.findall(r"^rank (\d): (\d+\.\d)%$", said, re.MULTILINE))
    assert sorted(accuracies) == ["0", "1", "2"], said
    assert len(set(accuracies.values())) == 1
    assert float(accuracies["0"]) > 90  # guessing: 10


def test_its_length_and_its_settings(tmp_path: Path) -> None:
    assert len(README.splitlines()) <= 180
    (settings,) = blocks("yaml")
    (tmp_path / "config.yaml").write_text(settings)
    assert load_config(tmp_path / "config.yaml").replicas == (("hflip",), ("vflip",), ("randaugment",))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_pages_name_exists(page: Path) -> None:
    """Links, pictures, scripts and configs."""
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert all((page.parent / link).exists() for link in links), links
    for name in re.findall(r"\b(?:launch|configs)/[\w/-]+\.(?:sh|yaml|sbatch|png)\b", text):
        assert (ROOT / name).exists() or "METHOD" in name, name


def test_every_package_says_what_it_is() -> None:
    for package in (ROOT / "lookaround_ddp").glob("*/__init__.py"):
        assert package.read_text().startswith('"""'), package
