"""Files that are there whole or not at all: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from blockpunch.errors import OutputError

_FIXES = {
    errno.ENOSPC: "free some space on this disk, or write elsewhere",
    errno.EDQUOT: "the disk quota is used up: free some space, or write elsewhere",
    errno.ENOENT: "make the folder first, or correct the path",
    errno.EISDIR: "name a file, not a folder",
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder, moved to ``path`` when the block ends, removed when it fails.

    An interrupt (Ctrl-C) leaves the old file, if any, as it was. Devices and pipes are written to directly.

    Raises:
        OutputError: no permission, disk full, or no such folder.
    """
    final = Path(os.path.realpath(path))  # a link stays, what it points to is replaced
    if final.exists() and not final.is_file() and not final.is_dir():
        temporary = final
    else:
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    try:
        # Checked first: a write of minutes must not end in "is a directory".
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        yield temporary
        if temporary != final:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
    except OSError as error:
        if error.filename not in (None, str(temporary), str(final)):
            raise  # of another file that the block worked with
        raise output_error(error, path) from error
    finally:
        if temporary != final:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextmanager
def atomic_open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Like :func:`atomic_path`, with the temporary file opened for binary writing."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a binary file whole or not at all (:class:`OutputError` if it cannot be)."""
    with atomic_open(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file whole or not at all (:class:`OutputError` if it cannot be)."""
    write_atomic(path, text.encode("utf-8"))


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder (and its parents) if it is not there, and see that files can be written in it.

    Raises:
        OutputError: it cannot be made or written in.
    """
    folder = Path(path)
    probe = folder / f".{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise output_error(error, folder) from error
    return folder


def output_error(error: OSError, path: str | os.PathLike[str]) -> OutputError:
    """The :class:`OutputError` that tells of an operating system's error on ``path``."""
    fix = _FIXES.get(error.errno or 0, "check that the folder exists and that you may write there")
    return OutputError(f"cannot be written: {error.strerror or error}", where=str(path), fix=fix)
