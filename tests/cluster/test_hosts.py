"""The launcher on three hosts, which are network namespaces with addresses and names of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, require
from tests.runs import TINY, train, weights

pytestmark = pytest.mark.timeout(300)
SCRIPT = Path(__file__).with_name("hosts.sh")


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    require("ip", "unshare")
    if subprocess.run(["ip", "netns", "add", "la-try"], capture_output=True).returncode != 0:
        pytest.skip("cannot make network namespaces")
    subprocess.run(["ip", "netns", "del", "la-try"], check=True)
    subprocess.run(["bash", SCRIPT, "up", "3"], check=True, timeout=60)
    yield
    subprocess.run(["bash", SCRIPT, "down", "3"], check=True, timeout=60)


def launch(venv: Path, *arguments: str, hosts: Sequence[int] = (1, 2, 3), head: str = "node1", **settings: str) -> str:
    """launch/torchrun.sh on these hosts; what all of them said. Any exit status but 0 fails, and so does a hang."""
    settings = {"VENV": str(venv), "NNODES": str(len(hosts)), "HEAD": head, "MAX_RESTARTS": "0"} | settings
    processes = []
    for rank, host in enumerate(hosts):
        values = [f"{key}={value}" for key, value in (settings | {"NODE_RANK": str(rank)}).items()]
        command = ["bash", str(SCRIPT), "on", str(host), "env", *values, "bash", "launch/torchrun.sh", *arguments]
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        said = "".join(process.communicate(timeout=150)[0] for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError(said)
    return said


def test_three_hosts_have_the_bits_of_one_process(hosts: None, venv: Path, tmp_path: Path) -> None:
    said = launch(venv, f"out={tmp_path}/three", *TINY)
    assert "3 replicas, k = 3, on 3 processes" in said
    train(tmp_path / "one", *TINY)
    assert weights(tmp_path / "three") == weights(tmp_path / "one")


@pytest.mark.parametrize(
    ("head", "settings", "message"),
    [
        ("nowhere", {}, "error: nowhere cannot be found from here"),
        ("node1", {"GLOO_SOCKET_IFNAME": "eth7"}, "error: GLOO_SOCKET_IFNAME=eth7: the interfaces with an address are"),
    ],
)
def test_a_way_that_does_not_exist_is_an_error_and_no_hang(
    hosts: None, venv: Path, tmp_path: Path, head: str, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(RuntimeError) as raised:
        launch(venv, f"out={tmp_path}/run", *TINY, head=head, **settings)
    assert str(raised.value).count(message) == 3
    assert not (tmp_path / "run").exists()
