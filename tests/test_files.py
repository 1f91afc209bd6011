"""Files that are written whole, and never through a link that somebody has put in their place."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lookaround_ddp.checkpoint import locked
from lookaround_ddp.files import link, make_folder, open_in_place, regular, remove, write_atomically, write_picture


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("name", ["config.yaml", ".writing-config.yaml"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(victim: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "config.yaml", b"seed: 1\n")
    assert victim.read_text() == "mine"
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink()) == ["config.yaml", "victim"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".writing-LATEST").write_text("half")
    write_atomically(tmp_path / "LATEST", b"10\n")
    assert [path.name for path in tmp_path.iterdir()] == ["LATEST"]


def test_a_picture_is_not_drawn_through_a_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "curves.png").symlink_to(victim)
    write_picture(tmp_path / "curves.png", Figure(), dpi=20)
    write_picture(tmp_path / "curves", Figure(), dpi=20)  # the same file: matplotlib adds the suffix
    assert victim.read_text() == "mine"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "curves").exists()


def test_what_is_opened_in_place_is_no_link(victim: Path, tmp_path: Path) -> None:
    message = "it is a symbolic link, and nothing is written through one: delete the link"
    for name in (".lock", "metrics.jsonl"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match=message) as caught, locked(tmp_path):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")
    with pytest.raises(OSError, match=message):
        open_in_place(tmp_path / "metrics.jsonl", "a")
    assert victim.read_text() == "mine"


def test_a_folder_that_is_a_link_is_neither_filled_nor_emptied(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "7").mkdir(parents=True)
    (tmp_path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="nothing is written through one"):
        make_folder(tmp_path / "checkpoints")
    remove(tmp_path / "checkpoints")
    assert not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "elsewhere" / "7").is_dir()
    remove(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_only_a_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a pipe, whose reader would wait, nor a link to one; a folder is left to whoever opens it."""
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    Path("zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    for name in ("pipe", "link", "zero", "socket"):
        for refuses in (regular, lambda path: open_in_place(path, "a")):
            with pytest.raises(OSError, match="it is a pipe, a socket or a device, and was not opened") as caught:
                refuses(Path(name))
            assert (caught.value.filename, caught.value.errno) == (name, errno.EINVAL)
    Path("file").touch()
    assert regular(Path("file")).read_bytes() == b""
    assert regular(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError):
        regular(Path("none"))


def test_where_a_file_can_have_but_one_name_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the copy is on the disk before the original may be removed."""
    synced: list[bytes] = []
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").read_bytes()))
    (tmp_path / "one").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"of before")
    link(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == b"content"
    assert synced == [b"content"]
