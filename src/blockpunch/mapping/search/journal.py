"""The journal of a search: a JSON-lines file with a header and a line for each candidate that was evaluated.

It is only ever appended to. A run that was ended in any way is taken up by running it again: the same seed proposes the
same candidates, and the journal answers for those that were evaluated before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockpunch.atomic import make_folder, output_error
from blockpunch.errors import DataError
from blockpunch.mapping.network import Cell

FORMAT = "blockpunch-search"
VERSION = 1


class Journal:
    """Losses by candidate, in a file.

    Args:
        path: read if it is there, begun by the first candidate if not; None: nothing is kept on disk.
        header: what the run depends on, readable: a journal with another one is refused.

    Raises:
        DataError: the file is something else, or of another run; names what differs.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.header = {"format": FORMAT, "version": VERSION, **header}
        self._losses: dict[str, float] = {}
        self._broken_tail = False
        if self.path is not None and self.path.exists() and self.path.stat().st_size:
            self._read(self.path)

    def get(self, cells: Mapping[str, Cell], thorough: bool) -> float | None:
        """The loss of a candidate, if it is known."""
        return self._losses.get(_key(_record(cells, thorough)))

    def add(self, cells: Mapping[str, Cell], loss: float, thorough: bool) -> None:
        """Remember a candidate, now and on disk, in one write.

        Raises:
            OutputError: the file cannot be written.
        """
        record = _record(cells, thorough)
        self._losses[_key(record)] = loss
        if self.path is None:
            return
        text = json.dumps({"loss": loss, **record}) + "\n"
        try:
            make_folder(self.path.parent)
            new = not self.path.exists() or not self.path.stat().st_size
            with self.path.open("ab") as file:
                file.write(((json.dumps(self.header) + "\n" if new else "\n" if self._broken_tail else "") + text)
                           .encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(error, self.path) from error
        self._broken_tail = False

    def _read(self, path: Path) -> None:
        try:
            head, *lines = path.read_text(encoding="utf-8").split("\n")
            if not lines and json.dumps(self.header).startswith(head):  # ended while it wrote the very first line
                path.write_bytes(b"")
                return
            header = json.loads(head)
            if header["format"] != FORMAT or header["version"] != VERSION:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError("is not the journal of a search", where=str(path), fix="name another file") from error
        different = [name for name in self.header if header.get(name) != self.header[name]]
        if different:
            raise DataError(f"the journal is of another run: {', '.join(different)} differ"
                            + ("s" if len(different) == 1 else ""), where=str(path),
                            fix="name another file, or remove this one to begin anew")
        self._broken_tail = bool(lines) and lines[-1] != ""
        for line in lines:
            try:
                record = json.loads(line)
                self._losses[_key(record)] = float(record["loss"])
            except (ValueError, KeyError, TypeError):
                continue  # the last line of an interrupted write


def _record(cells: Mapping[str, Cell], thorough: bool) -> dict[str, Any]:
    return {"thorough": thorough, "cells": {name: [str(scheme), rate] for name, (scheme, rate) in cells.items()}}


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps([record["thorough"], record["cells"]], sort_keys=True)
