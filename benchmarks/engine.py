"""The engine's tables: ours beside every peer that is installed, each part alone or all of them.

    make peers                               environments for the engines that cannot share ours (DeepSparse)
    python benchmarks/engine.py bars         one table; goes on where an interrupted run of the same code stopped
    python benchmarks/engine.py all          every table, each in a process of its own
    python benchmarks/engine.py publish      write docs/engine-results.md, its pictures and the README's table

One pinned core, interleaved rounds, CPU time, medians; run it on a quiet machine. Rows are kept in out/engine/*.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.pop("OPENBLAS_CORETYPE", None)  # a machine-wide choice of BLAS kernels may slow engines down

from blockpunch.atomic import write_text
from blockpunch.measure.machine import survey
from engine_tables import bars, building, foreign, peers, rates, scaling
from engine_tables.results import Row, Rows, Settings

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by benchmarks/engine.py publish -->", "<!-- end of results -->"
Plot = Callable[[dict[str, Row], Path], None]


class Part(NamedTuple):
    """A table: its units of work, how one is measured, and how the rows are shown. ``seconds`` for each engine."""

    title: str
    keys: Callable[[Settings], list[str]]
    measure: Callable[[str, Settings], Row]
    table: Callable[[dict[str, Row]], str]
    seconds: float
    plot: Plot | None = None


PARTS = {
    "bars": Part("Pruned by block-punched 8x4 against dense peers", bars.keys, bars.measure, bars.both_tables, 5,
                 bars.plot),
    "foreign": Part("Zeros that other tools make", foreign.keys, foreign.measure, foreign.table, 5),
    "threads": Part("Two threads", scaling.thread_keys, scaling.measure_threads, scaling.thread_table, 4),
    "shapes": Part("Batch and size: time per kept multiply-add", scaling.shape_keys, scaling.measure_shapes,
                   scaling.shape_table, 3),
    "rates": Part("Time against rate, for every regularity", rates.keys, rates.measure, rates.table, 2, rates.plot),
    "compile": Part("Compiling, and memory at run", building.keys, building.measure, building.table, 0),
    "avx2": Part("With AVX2 alone (OpenVINO too)", bars.keys, bars.measure_avx2, bars.avx2_tables, 5),
}


def run(name: str, settings: Settings) -> str:
    """Measure what is missing of a part, and give its table."""
    part, rows = PARTS[name], Rows(name, settings)
    keys = part.keys(settings)
    for number, key in enumerate(keys, start=1):
        if rows.has(key):
            continue
        start = time.monotonic()
        row = part.measure(key, settings)
        rows.add(key, row)
        print(f"[{name} {number}/{len(keys)}] {key}: {time.monotonic() - start:.0f} s", flush=True)
    found = rows.all(keys)
    if part.plot and found:
        part.plot(found, settings.folder / f"{name}.png")
    return text(name, found)


def text(name: str, rows: dict[str, Row]) -> str:
    """A part's heading and table, and how busy the machine was."""
    load = max((row["load"] for row in rows.values()), default=0.0)
    note = f"\n\nThe machine was busy with other work (load {load:.1f})." if load > 1.6 else ""
    return f"## {PARTS[name].title}\n\n{PARTS[name].table(rows)}{note}\n"


def publish(settings: Settings, root: Path) -> None:
    """Write the page of results with its pictures, and the table in the README."""
    docs, machine = root / "docs", survey()
    versions = ", ".join(f"{peers.TITLES[name]} {version}" for name, version in peers.installed().items())
    how = (f"Float32, batch 1, one pinned core unless said; {machine.cpu}, {machine.isa}, FMA peak "
           f"{2 * (machine.peak_gmacs or 0):.0f} GFLOP/s; medians of interleaved rounds in CPU time (two threads: "
           f"wall clock). {versions}. Error: our largest difference from ONNX Runtime, over the largest output.")
    pages = ["# The engine, measured\n\nWritten by `python benchmarks/engine.py publish`. A bold figure reaches the "
             "bar beside it. Pruned is every layer but the first convolution and depthwise ones (`blockpunch prune "
             f"--scheme block-punched --block 8x4 --only '*' --only LAST_LINEAR`). {how}\n"]
    for name, part in PARTS.items():
        rows = Rows(name, settings).all(part.keys(settings))
        if not rows:
            continue
        picture = ""
        if part.plot:
            (docs / "pictures").mkdir(exist_ok=True)
            part.plot(rows, docs / "pictures" / f"{name}.png")
            picture = f"\n![{part.title}](pictures/{name}.png)\n"
        pages.append(text(name, rows) + picture)
    write_text(docs / "engine-results.md", "\n".join(pages))
    if rows := Rows("bars", settings).all(bars.keys(settings)):
        before, rest = (root / "README.md").read_text(encoding="utf-8").split(BEGIN)
        table = f"{BEGIN}\n{bars.readme_table(rows)}\n\n{how}\n{END}"
        write_text(root / "README.md", f"{before}{table}{rest.split(END)[1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the options and do one part, or all."""
    parser = argparse.ArgumentParser(prog="engine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all", "publish"])
    parser.add_argument("--only", action="append", default=[], metavar="NETWORK", help="one network; may be repeated")
    parser.add_argument("--seconds", type=float, help="measuring time for each engine")
    parser.add_argument("--tune", type=float, default=0.0, metavar="SECONDS", help="for each compilation; default 0")
    parser.add_argument("--peers", metavar="A,B", help="engines beside ours; default: all that are installed")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "engine", help="folder of the results")
    options = parser.parse_args(arguments)
    if options.part == "all":
        own = list(sys.argv[1:] if arguments is None else arguments)
        for name in PARTS:
            words = [name if word == "all" else word for word in own]
            subprocess.run([sys.executable, str(Path(__file__).resolve()), *words], check=True)
        return
    peers.find_environments()
    chosen = tuple(options.peers.split(",")) if options.peers else tuple(peers.installed())
    part = PARTS.get(options.part)
    seconds = options.seconds or (part.seconds if part else 0.0)
    settings = Settings(options.output, seconds, options.tune, chosen, tuple(options.only))
    if part is None:
        publish(settings, ROOT)
    else:
        print(run(options.part, settings))


if __name__ == "__main__":
    main()
