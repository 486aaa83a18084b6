"""Which engines take part, and one measurement of ours beside them."""

from __future__ import annotations

import os
from pathlib import Path

from blockpunch.measure.bench import OURS, BenchResult, Entry, bench_entries
from blockpunch.measure.engines import ENGINES

TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN",
          "deepsparse": "DeepSparse"}
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".peers"
"""Where ``make peers`` puts the environments of engines that cannot share ours."""

PEER_TOLERANCE = 1e-2
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
    entries += [Entry(label, engine, path, tolerance=PEER_TOLERANCE) for label, (engine, path) in peers.items()]
    result = bench_entries(title, entries, threads=threads, seconds=seconds)
    for label, reason in result.left_out.items():
        print(f"  {label} is left out: {reason}", flush=True)
    return result


def error_of_ours(result: BenchResult) -> float:
    """The largest relative error of our builds."""
    return max(row.max_rel_error or 0.0 for row in result.engines.values() if row.model.endswith(".bp"))
