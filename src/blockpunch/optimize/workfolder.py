"""A folder in which a long job leaves the results of its finished stages, so that it can be interrupted and resumed."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blockpunch.atomic import make_folder, write_text

_STATE = "state.json"
_VERSION = 1


def fingerprint(*parts: Any) -> str:
    """A short hash of plain data; paths count by the content of the file."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:24]


class WorkFolder:
    """Runs stages, each at most once for the same inputs.

    A stage is known by its name and a key made of everything it depends on. Its facts (plain data) are kept in
    ``state.json``, its files beside it. A stage whose key or files are not what they were is done again.

    Raises:
        OutputError: the folder cannot be made or written in.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = make_folder(path)
        self._say = say
        self._stages: dict[str, Any] = self._read()
        self.seconds: dict[str, float] = {}

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
            stages: dict[str, Any] = state["stages"] if state["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that cannot be trusted: start anew
            return {}
        return stages

    def file(self, name: str) -> Path:
        """A path in the folder."""
        return self.path / name

    def finished(self, name: str, key: str) -> bool:
        """Whether the stage was done with this key and its files are still there, unaltered in size."""
        known = self._stages.get(name)
        return known is not None and known["key"] == key and all(
            self.file(file).is_file() and self.file(file).stat().st_size == size
            for file, size in known["files"].items())

    def stage(self, name: str, key: str, files: Sequence[str], action: Callable[[], Any]) -> Any:
        """The facts of a stage: those of the state where it is finished, else what ``action`` returns.

        ``action`` writes ``files`` and returns plain data, which has been through JSON either way.
        """
        if self.finished(name, key):
            self._say(f"{name}: kept from before")
        else:
            self._say(f"{name}: started")
            start = time.monotonic()
            facts = action()
            taken = round(time.monotonic() - start, 2)
            self._stages[name] = {"key": key, "seconds": taken, "facts": json.loads(json.dumps(facts)),
                                  "files": {file: self.file(file).stat().st_size for file in files}}
            text = json.dumps({"version": _VERSION, "stages": self._stages}, indent=1)
            write_text(self.file(_STATE), text + "\n")
            self._say(f"{name}: done in {taken:.1f} s")
        self.seconds[name] = self._stages[name]["seconds"]
        return copy.deepcopy(self._stages[name]["facts"])  # the state must not change in the caller's hands
