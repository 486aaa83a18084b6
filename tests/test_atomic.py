"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from blockpunch.atomic import atomic_open, atomic_path, make_folder, write_atomic, write_text
from blockpunch.errors import OutputError


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failed_write_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_open(path) as file:
        file.write(b"half of the new")
        file.flush()
        assert len(list(tmp_path.iterdir())) == 2
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_pipes_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "hello")
    assert os.read(reader, 100) == b"hello"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_faults_name_the_path_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none/file: cannot be written: No such file.*\n  -> make the folder first"):
        write_text(tmp_path / "none" / "file", "x")
    with pytest.raises(OutputError, match="name a file, not a folder"):
        write_text(tmp_path, "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "file" / "inside", "x")
    with pytest.raises(OutputError, match="cannot be written"):
        make_folder(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_full() -> None:
    with pytest.raises(OutputError, match=r"/dev/full: .*\n  -> free some space"):
        write_text("/dev/full", "x" * 100_000)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write_text(tmp_path / "file", "x")
    with pytest.raises(OutputError, match="Permission denied"):
        make_folder(tmp_path)


def test_faults_of_other_files_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out"):
        (tmp_path / "input").read_text()


def test_folders(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a" / "b")
    assert made.is_dir()
    assert make_folder(made) == made
    assert not list(made.iterdir())
