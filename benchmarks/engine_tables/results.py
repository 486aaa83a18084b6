"""What was measured, as JSON: a row per unit of work, kept as soon as it is there, valid for the code that made it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blockpunch
from blockpunch.atomic import make_folder, write_text

Row = dict[str, Any]
_DECIDES_SPEED = ("compiler", "graph", "runtime", "build.py", "tuning.py", "target.py")


@dataclass(frozen=True)
class Settings:
    """What the command line asked for. ``seconds``: for each engine; ``tune``: for each compilation (0: none)."""

    folder: Path
    seconds: float
    tune: float
    peers: tuple[str, ...]
    networks: tuple[str, ...]

    def wants(self, network: str) -> bool:
        """Whether a network is to be measured."""
        return not self.networks or network in self.networks


class Rows:
    """The rows of one part. A row of other code or settings counts as not measured, but can still be shown."""

    def __init__(self, part: str, settings: Settings) -> None:
        self.path = settings.folder / f"{part}.json"
        self.stamp = f"{code_version()}, {settings.seconds:g} s, tune {settings.tune:g} s, {','.join(settings.peers)}"
        self._rows: dict[str, Row] = {}
        if self.path.exists():
            self._rows = json.loads(self.path.read_text(encoding="utf-8"))

    def has(self, key: str) -> bool:
        """Whether the row was measured with this code and these settings."""
        return key in self._rows and self._rows[key]["stamp"] == self.stamp

    def add(self, key: str, row: Row) -> None:
        """Keep a row, on disk too."""
        self._rows[key] = {**row, "stamp": self.stamp, "load": round(os.getloadavg()[0], 2)}
        make_folder(self.path.parent)
        write_text(self.path, json.dumps(self._rows, indent=1) + "\n")

    def all(self, keys: Sequence[str]) -> dict[str, Row]:
        """The rows that there are, in the order of ``keys``."""
        return {key: self._rows[key] for key in keys if key in self._rows}


def code_version() -> str:
    """A hash of the sources that decide how fast the compiled networks are."""
    package, digest = Path(blockpunch.__file__).parent, hashlib.sha256()
    for name in _DECIDES_SPEED:
        root = package / name
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; fractions get as many decimals as their size needs, None is a dash."""
    def cell(value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
        return str(value)

    lines = [columns, ["---"] * len(columns), *[[cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float | None) -> str | None:
    """0.756 -> ``76 %``."""
    return None if share is None else f"{100 * share:.0f} %"


def versus(value: float | None, bar: float | None, *, at_most: bool = False) -> str | None:
    """A ratio beside its bar: ``4.6 (4.4)``, bold where it is reached."""
    if value is None:
        return None
    if bar is None:
        return f"{value:.2f}"
    reached = value <= bar if at_most else value >= bar
    text = f"**{value:.2f}**" if reached else f"{value:.2f}"
    return f"{text} ({'≤' if at_most else '≥'} {bar:g})"
