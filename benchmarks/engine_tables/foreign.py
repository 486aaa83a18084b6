"""Zeros that no one prepared for us: other tools' schemes, beside the engines that take them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from engine_tables.models import TITLES, Models
from engine_tables.peers import TITLES as PEERS
from engine_tables.peers import error_of_ours
from engine_tables.peers import measure as run
from engine_tables.results import Row, Settings, markdown, versus


class Case(NamedTuple):
    """A network, how it is pruned, the engine that gains from such zeros, and what we are to reach against it, against
    our own dense build, and in gain against a second scheme at the same rate."""

    network: str
    scheme: str
    rate: float
    peer: str | None = None
    ratio: float | None = None
    own: float | None = None
    other: str | None = None
    part: float | None = None


CASES = {
    "unstructured": Case("resnet50", "unstructured", 10, "deepsparse", 3, 3),
    "blocks of 4 filters": Case("resnet50", "block-punched:4x1", 10, "mnn", 3.5),
    "pattern + connectivity": Case("vgg16", "pattern", 3.6, other="block-punched:8x4", part=0.7),
}


def keys(settings: Settings) -> list[str]:
    return [name for name, case in CASES.items() if settings.wants(case.network)]


def measure(name: str, settings: Settings) -> Row:
    """Ours on the pruned file and on the dense one, the peer on the same two, and the other scheme, in one run."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), settings.tune)
        files = {"dense": models.dense(case.network)}
        files["pruned"] = models.pruned(files["dense"], case.scheme, case.rate)
        if case.other:
            files["other"] = models.pruned(files["dense"], case.other, case.rate)
        ours = {label: (models.compiled(path), path) for label, path in files.items()}
        peers = {f"{case.peer} {label}": (case.peer, files[label]) for label in ("dense", "pruned")
                 } if case.peer and case.peer in settings.peers else {}
        result = run(name, ours, peers, seconds=settings.seconds)
    return {"ms": {label: engine.median_ms for label, engine in result.engines.items()},
            "error": error_of_ours(result)}


def table(rows: dict[str, Row]) -> str:
    """One line per scheme."""
    lines = []
    for name, row in rows.items():
        case, ms = CASES[name], row["ms"]
        peer = ms.get(f"{case.peer} pruned")
        dense = ms.get(f"{case.peer} dense")
        peer_text = f"{peer:.2f} {PEERS[str(case.peer)]}" + (f" (dense {dense:.2f})" if dense else "") if peer else None
        gain = versus(ms["other"] / ms["pruned"], case.part) if case.other else None
        lines.append([f"{TITLES[case.network]}, {name}", f"{case.rate:g}", ms["dense"], ms["pruned"],
                      versus(ms["dense"] / ms["pruned"], case.own), peer_text,
                      versus(peer and peer / ms["pruned"], case.ratio),
                      f"{ms['other']:.2f}, {case.other}" if case.other else None, gain])
    return markdown(("zeros", "rate", "ours dense, ms", "ours, ms", "ours dense / ours", "peer on the same file, ms",
                     "peer / ours", "other scheme, ms", "gain / other's gain"), lines)
