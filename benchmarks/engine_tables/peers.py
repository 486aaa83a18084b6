"""Which engines take part, and one measurement of ours beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blockpunch.errors import BenchmarkError
from blockpunch.measure.bench import OURS, BenchResult, Entry, bench_entries
from blockpunch.measure.engines import ENGINES

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN",
          "deepsparse": "DeepSparse"}
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".peers"
"""Where ``make peers`` puts the environments of engines that cannot share ours."""

TOLERANCE, PEER_TOLERANCE = 1e-3, 1e-2
"""MNN's Winograd convolutions are off by 2e-3 on a deep network, which is no reason not to show its time."""


def find_environments() -> None:
    """Let isolated engines run in the environments that ``make peers`` made, where nothing else was said."""
    for name, row in ENGINES.items():
        python = ENVIRONMENTS / name / "bin" / "python"
        if row.isolated and python.exists():
            os.environ.setdefault(row.variable, str(python))


def installed() -> dict[str, str]:
    """Engine -> version, of those that can run here; ours is not among them."""
    return {name: version for name, row in ENGINES.items() if name != OURS and (version := row.version())}


def measure(title: str, ours: dict[str, tuple[Path, Path]], peers: dict[str, tuple[str, Path]], *, seconds: float,
            threads: int = 1) -> BenchResult:
    """One interleaved run.

    Args:
        title: what it is called.
        ours: label -> (compiled file, the ONNX file it was made from).
        peers: label -> (engine, ONNX file); one that cannot run its file is left out, with a line that says why.
        seconds: for each engine.
        threads: for each engine.
    """
    entries = [Entry(label, OURS, built, source) for label, (built, source) in ours.items()]
    candidates = [Entry(label, engine, path) for label, (engine, path) in peers.items()]
    result = bench_entries(title, [*entries, *_usable(candidates, threads)], threads=threads, seconds=seconds,
                           tolerance=PEER_TOLERANCE)
    if error := [label for label in ours if not (result.engines[label].max_rel_error or 0.0) <= TOLERANCE]:
        raise BenchmarkError(f"{', '.join(error)}: our outputs are wrong", where=title)
    return result


def error_of_ours(result: BenchResult) -> float:
    """The largest relative error of our builds."""
    return max(row.max_rel_error or 0.0 for row in result.engines.values() if row.model.endswith(".bp"))


def _usable(entries: Sequence[Entry], threads: int) -> list[Entry]:
    good = []
    for entry in entries:
        try:
            bench_entries(entry.label, [entry], threads=threads, seconds=0.01, tolerance=PEER_TOLERANCE)
            good.append(entry)
        except BenchmarkError as error:
            print(f"  {entry.label} is left out: {error}", flush=True)
    return good
