"""Measure the table of results in the README: networks pruned in one shot, ours beside ONNX Runtime and OpenVINO.

The weights decide nothing about speed, so random ones do; accuracy is a matter of ``make demo`` and the examples.
``python benchmarks/readme_table.py`` measures everything (some minutes) and writes the table into README.md;
``--print`` only prints it.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.pop("OPENBLAS_CORETYPE", None)

import networks
from blockpunch.build import compile as compile_model
from blockpunch.graph import load_graph
from blockpunch.layers import prunable_layers
from blockpunch.measure.bench import OURS, BenchResult, Entry, bench_entries
from blockpunch.measure.machine import survey
from blockpunch.plan import Plan
from blockpunch.pruning.onnx_prune import prune_onnx

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- results: written by benchmarks/readme_table.py -->", "<!-- end of results -->"
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


class Row(NamedTuple):
    """A network, how it is pruned, and its name in the table."""

    network: str
    title: str
    scheme: str
    rate: float


ROWS = (
    Row("resnet50", "ResNet-50, 224", "block-punched:8x4", 6),
    Row("vgg16", "VGG-16, 224", "block-punched:8x4", 6),
    Row("mobilenet-v2", "MobileNetV2, 224", "block-punched:8x4", 4),
    Row("efficientnet-lite0", "EfficientNet-Lite0, 224", "block-punched:8x4", 2),
    Row("yolov5s", "YOLOv5s, 416", "block-punched:8x4", 6),
    Row("resnet18-32", "ResNet-18, 32", "block-punched:8x4", 6),
)


def measure(row: Row, folder: Path, threads: int, seconds: float) -> BenchResult:
    """Export, prune, compile, and measure all engines in one run."""
    dense = networks.export(row.network, folder / f"{row.network}.onnx")
    pruned = folder / f"{row.network}-pruned.onnx"
    plan = Plan.uniform(prunable_layers(load_graph(dense)), row.scheme, row.rate)
    prune_onnx(dense, plan, pruned)
    builds = {"dense": dense, "pruned": pruned}
    for name, path in builds.items():
        compile_model(path, threads=threads).save(folder / f"{row.network}-{name}.bp")
    entries = [Entry(name, OURS, folder / f"{row.network}-{name}.bp", path) for name, path in builds.items()]
    entries += [Entry(title, name, dense) for name, title in PEERS.items()]
    return bench_entries(row.title, entries, threads=threads, seconds=seconds)


def line(row: Row, result: BenchResult) -> str:
    """One row of the table."""
    times = {name: engine.median_ms for name, engine in result.engines.items()}
    best = min(PEERS.values(), key=lambda name: times[name])
    error = max(engine.max_rel_error or 0 for engine in result.engines.values())
    return (f"| {row.title} | {row.scheme.replace(':', ' ')} | {row.rate:g} | {times[best]:.2f} ({best}) | "
            f"{times['dense']:.2f} | **{times['pruned']:.2f}** | **{times[best] / times['pruned']:.2f}×** | "
            f"{times['dense'] / times['pruned']:.2f}× | {error:.0e} |")


def table(threads: int, seconds: float, only: str | None) -> str:
    """The whole table as Markdown, with a line on how it was measured."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            if only in (None, row.network):
                start = time.monotonic()
                lines.append(line(row, measure(row, Path(folder), threads, seconds)))
                print(f"{lines[-1]}  ({time.monotonic() - start:.0f} s)", flush=True)
    machine = survey()
    versions = ", ".join(f"{title} {machine.engines[name]}" for name, title in PEERS.items())
    return "\n".join([
        "| network | scheme | rate | best dense peer, ms | ours dense, ms | ours pruned, ms | best peer → pruned | "
        "ours dense → pruned | error |", "|---|---|---|---|---|---|---|---|---|", *lines, "",
        f"Batch 1, float32, {threads} thread{'s' if threads > 1 else ''}, {machine.cpu} ({machine.isa}, FMA peak "
        f"{2 * (machine.peak_gmacs or 0):.0f} GFLOP/s a core); medians of interleaved rounds in one process; "
        f"{versions}. Error: largest difference from ONNX Runtime over the largest output, all engines."])


def main() -> None:
    """Parse the options, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="measuring time for each engine")
    parser.add_argument("--only", choices=[row.network for row in ROWS], help="one network; implies --print")
    parser.add_argument("--print", action="store_true", dest="print_only")
    options = parser.parse_args()
    text = table(options.threads, options.seconds, options.only)
    if options.print_only or options.only:
        print(text)
        return
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
