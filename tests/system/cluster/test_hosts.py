"""The launcher on three hosts, which are network namespaces with addresses and names of their own."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.limits import TEST_TIMEOUT
from tests.support.runs import ROOT, TINY, train, weights
from tests.system.cluster.conftest import require

SCRIPT = Path(__file__).with_name("hosts.sh")


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    require("ip", "unshare")
    if subprocess.run(["ip", "netns", "add", "la-try"], capture_output=True).returncode != 0:
        pytest.skip("cannot make network namespaces")
    subprocess.run(["ip", "netns", "del", "la-try"], check=True)
    subprocess.run(["bash", SCRIPT, "up", "3"], check=True, timeout=TEST_TIMEOUT)
    yield
    subprocess.run(["bash", SCRIPT, "down", "3"], check=True, timeout=TEST_TIMEOUT)


def start(venv: Path, said: Path, *arguments: str, host: int, **settings: str) -> subprocess.Popen[bytes]:
    """launch/torchrun.sh on host 1, 2 or 3, which is node 0, 1 or 2; what it says goes to a file."""
    settings = {"VENV": str(venv), "NNODES": "3", "HEAD": "node1", "MAX_RESTARTS": "0"} | settings
    values = [f"{key}={value}" for key, value in (settings | {"NODE_RANK": str(host - 1)}).items()]
    command = ["bash", str(SCRIPT), "on", str(host), "env", *values, "bash", "launch/torchrun.sh", *arguments]
    with said.open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)


def launch(venv: Path, folder: Path, *arguments: str, **settings: str) -> str:
    """The launcher on all hosts; what they said. Any exit status but 0 fails, and so does a hang."""
    files = [folder / f"node{host}.txt" for host in (1, 2, 3)]
    processes = [start(venv, file, *arguments, host=host, **settings) for host, file in enumerate(files, 1)]
    try:
        codes = [process.wait(TEST_TIMEOUT) for process in processes]
    finally:
        end(processes)
    said = "".join(file.read_text() for file in files)
    if any(codes):
        raise RuntimeError(said)
    return said


def end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()


def test_three_hosts_have_the_bits_of_one_process(hosts: None, venv: Path, tmp_path: Path) -> None:
    said = launch(venv, tmp_path, f"out={tmp_path}/three", *TINY)
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
        launch(venv, tmp_path, f"out={tmp_path}/run", *TINY, HEAD=head, **settings)
    assert str(raised.value).count(message) == 3
    assert not (tmp_path / "run").exists()


def test_a_host_that_is_cut_off_is_named_and_the_job_goes_on_when_it_is_back(
    hosts: None, venv: Path, tmp_path: Path
) -> None:
    """The others end within the timeout, and wait; the one cut off ends, too. The bits are those of one process."""
    out = tmp_path / "run"
    config = (*TINY, "epochs=150", "checkpoint.every=10", "record.every=50", "evaluate.every=99")
    arguments = (f"out={out}", *config, "timeout=8")
    files = [tmp_path / f"node{host}.txt" for host in (1, 2, 3)]
    nodes = [start(venv, file, *arguments, host=host, MAX_RESTARTS="3") for host, file in enumerate(files, 1)]
    try:
        wait_for(lambda: (out / "LATEST").exists())
        subprocess.run(["bash", SCRIPT, "cut", "3"], check=True)
        wait_for(lambda: "waited in vain" in files[0].read_text())
        assert nodes[2].wait(TEST_TIMEOUT) == 1
        subprocess.run(["bash", SCRIPT, "mend", "3"], check=True)
        nodes[2] = start(venv, files[2], *arguments, host=3, MAX_RESTARTS="3")
        assert [node.wait(TEST_TIMEOUT) for node in nodes] == [0, 0, 0], files[0].read_text()
    finally:
        end(nodes)
    who = r"stopped: ranks 0 and 1 waited in vain, .* iteration \d+ \(timeout 8 s\): rank 2 gives no sign of life, last"
    assert re.search(who, files[0].read_text())
    assert "stopped: rank 0 has ended, or its host cannot be reached" in files[2].read_text()
    assert "error: node1 cannot be reached at port 29400: start this node again when it can" in files[2].read_text()
    assert re.search(r"resumed after iteration \d+", files[0].read_text())
    train(tmp_path / "one", *config)
    assert weights(out) == weights(tmp_path / "one")


def test_a_host_that_is_cut_off_when_all_is_done_holds_nobody_up(hosts: None, venv: Path, tmp_path: Path) -> None:
    """The run has finished, and its last rank is about to end. torchrun would wait 300 s for that host."""
    out, held = tmp_path / "run", f"{{tests.support.own_code.HeldAtTheEnd: {{folder: {tmp_path}}}}}"
    files = [tmp_path / f"node{host}.txt" for host in (1, 2, 3)]
    arguments = (f"out={out}", *TINY, f"replicas=[[crop], [hflip], [{held}]]", "timeout=30")
    nodes = [start(venv, file, *arguments, host=host) for host, file in enumerate(files, 1)]
    try:
        wait_for((tmp_path / "held").exists)
        subprocess.run(["bash", SCRIPT, "cut", "3"], check=True)
        (tmp_path / "go").touch()
        assert [node.wait(TEST_TIMEOUT / 4) for node in nodes[:2]] == [0, 0], files[0].read_text()
        assert nodes[2].wait(TEST_TIMEOUT) == 1
    finally:
        subprocess.run(["bash", SCRIPT, "mend", "3"], check=True)
        end(nodes)
    assert (out / "result.json").exists()
    assert "Traceback" not in "".join(file.read_text() for file in files)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TEST_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
