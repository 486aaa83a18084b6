"""What compiling costs, and how much memory a compiled network takes when it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blockpunch.artifact import Artifact
from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from engine_tables.models import BLOCK_PUNCHED, TITLES, Models
from engine_tables.results import Row, Settings, markdown, versus

RATES = {"resnet50": 6.0, "vgg16": 8.0, "mobilenet-v2": 4.0}
BARS = {"resnet50": (20.0, 300.0, 20.0)}
TUNE = 280
_RUN = """
import pathlib, sys
import numpy
from blockpunch import Session
def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
shapes = [spec.shape for spec in Session(sys.argv[1]).inputs]
inputs = [numpy.ones(shape, numpy.float32) for shape in shapes]
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
before = status("VmRSS")
with Session(sys.argv[1]) as session:
    for _ in range(3): session.run(inputs)
    print(status("VmHWM") - before)
"""
"""What a fresh Linux process grows by when it opens a network and runs it; its weights are mapped, and count."""


def keys(settings: Settings) -> list[str]:
    return [network for network in RATES if settings.wants(network)]


def measure(network: str, settings: Settings) -> Row:
    """The command line's time without and with tuning, from an empty store; then a fresh process runs the result."""
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), 0)
        file = models.pruned(models.dense(network), BLOCK_PUNCHED, RATES[network])
        bp = Path(folder) / "net.bp"
        tune = ["--tune", str(TUNE)]
        seconds = [_compile(file, bp, Path(folder), options) for options in ([], tune, tune)]
        done = subprocess.run([sys.executable, "-c", _RUN, str(bp)], capture_output=True, text=True, check=True)
        manifest = Artifact.load(bp).manifest
        return {"seconds": seconds, "run_bytes": json.loads(done.stdout), "weights_bytes": manifest.weights_bytes,
                "scratch_bytes": manifest.scratch_bytes, "pair_bytes": largest_pair(file),
                "library_bytes": len(Artifact.load(bp).library or b"")}


def _compile(file: Path, output: Path, cache: Path, options: list[str]) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "blockpunch", "compile", str(file), "-o", str(output), *options],
                   env={**os.environ, "BLOCKPUNCH_CACHE": str(cache / "cache")}, check=True, capture_output=True)
    return time.monotonic() - start


def largest_pair(file: Path) -> int:
    """Bytes of the largest input and result that one layer holds at the same time."""
    graph = optimize(load_graph(file))
    return max(max((graph.values[name].size for name in node.inputs if name in graph.values), default=0)
               + max(graph.values[name].size for name in node.outputs) for node in graph) * 4


def table(rows: dict[str, Row]) -> str:
    """Seconds and megabytes."""
    lines = []
    for network, row in rows.items():
        bars = BARS.get(network, (None, None, None))
        budget = row["weights_bytes"] + 2 * row["pair_bytes"]
        mb = [row[name] / 1e6 for name in ("run_bytes", "weights_bytes", "scratch_bytes", "pair_bytes")]
        lines.append([f"{TITLES[network]} at rate {RATES[network]:g}",
                      *(versus(s, bar, at_most=True) for s, bar in zip(row["seconds"], bars, strict=True)),
                      *(f"{value:.1f}" for value in mb),
                      versus(row["run_bytes"] / budget, 1, at_most=True)])
    return markdown(("network", "untuned, s", f"tuned (--tune {TUNE}), s", "tuned again, s", "grown at run, MB",
                     "weights, MB", "activations, MB", "largest pair, MB",
                     "grown / (weights + 2 pairs)"), lines)
