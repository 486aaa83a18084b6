"""The verbs ``doctor`` and ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.options import Json, Model, Shape, Threads, comma_list, parse_shapes
from blockpunch.measure.bench import OURS, BenchResult
from blockpunch.measure.bench import bench as measure
from blockpunch.measure.engines import ENGINES
from blockpunch.measure.machine import EXTRAS, Machine, survey


def doctor(json_: Json = None) -> None:
    """Show this machine: CPU, vector width, compiler, FMA peak, engines, missing packages."""
    machine = survey()
    if json_ is not None:
        show.write_json(machine.to_json(), json_)
        if json_ == "-":
            return
    show.table("This machine", ("", ""), _machine_rows(machine))
    rows = [(name, version or "not installed", "" if version else ENGINES[name].advice)
            for name, version in machine.engines.items()]
    show.table("Engines", ("engine", "version", "to get it"), rows)
    if machine.missing:
        show.table("Missing packages", ("for", "packages", "to get them"), [
            (EXTRAS[extra], ", ".join(names), f"pip install 'blockpunch[{extra}]'")
            for extra, names in machine.missing.items()])
    if machine.compiler is None:
        show.line(machine.compiler_problem or "no C compiler")


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    caches = " / ".join(show.megabytes(size) for size in (machine.l1_bytes, machine.l2_bytes, machine.l3_bytes))
    peak = "-" if machine.peak_gmacs is None else \
        f"{machine.peak_gmacs:.1f} GMAC/s on one core ({2 * machine.peak_gmacs:.0f} GFLOP/s)"
    return [("CPU", machine.cpu), ("system", machine.system), ("cores for us", str(machine.cores)),
            ("instructions", f"{machine.arch}, {machine.isa}, vectors of {machine.vector_bits} bits"),
            ("caches 1 / 2 / 3", caches), ("C compiler", machine.compiler or "none"), ("FMA peak", peak)]


def bench(
    model: Model,
    engines: Annotated[str, typer.Option("--engines", "-e", help=f"With commas between; of {', '.join(ENGINES)}.")] =
        "blockpunch,onnxruntime",
    threads: Threads = 1,
    peer_model: Annotated[Path | None, typer.Option(
        "--peer-model", show_default=False, help="What engines other than blockpunch run (the dense file).")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, help="Measuring time for each engine.")] = 3.0,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0.0, help="Accepted relative difference.")] = 1e-3,
    shape: Shape = None,
    json_: Json = None,
) -> None:
    """Measure engines side by side: interleaved rounds in one process, pinned, outputs compared."""
    result = measure(model, comma_list(engines), threads=threads, peer_model=peer_model, shapes=parse_shapes(shape),
                     seconds=seconds, tolerance=tolerance, progress=show.note)
    if json_ is not None:
        show.write_json(result.to_json(), json_)
    if json_ != "-":
        show_bench(result)


def show_bench(result: BenchResult) -> None:
    """The table of a measurement."""
    ours = result.engines.get(OURS)
    rows = [(name, r.median_ms, r.min_ms, f"{100 * r.spread:.1f} %", r.runs,
             None if r.max_rel_error is None else f"{r.max_rel_error:.1e}",
             None if ours is None or name == OURS else f"{r.median_ms / ours.median_ms:.2f} x",
             r.version, Path(r.model).name)
            for name, r in sorted(result.engines.items(), key=lambda item: item[1].median_ms)]
    clock = "CPU time" if result.clock == "cpu" else "wall-clock time"
    columns = ("engine", "median ms", "min ms", "spread", "runs", "error", "ours is faster by", "version", "model")
    show.table(f"{Path(result.model).name}, {result.threads} thread(s)", columns, rows,
               caption=f"{clock} for each inference; error: largest difference from ONNX Runtime / largest output")
    for label, reason in result.left_out.items():
        show.line(f"{label} is left out: {reason}")
