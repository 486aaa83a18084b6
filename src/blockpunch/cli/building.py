"""The verbs ``inspect``, ``compile``, ``run`` and ``extract``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from blockpunch.artifact import Artifact
from blockpunch.atomic import write_atomic
from blockpunch.build import compile as compile_model
from blockpunch.cli import show
from blockpunch.cli.options import Json, Model, Output, Shape, Threads, Tune, check_output, parse_shapes
from blockpunch.errors import InputError, OutputError, ToolchainError
from blockpunch.measure.layers import LayerTime, limits, time_layers, total
from blockpunch.optimize import Event
from blockpunch.runtime.session import Session
from blockpunch.target import TARGET_NAMES, Target


def compile_(
    model: Model,
    output: Output,
    target: Annotated[str, typer.Option("--target", help=f"One of: {', '.join(TARGET_NAMES)}.")] = "host",
    threads: Threads = 1,
    tune: Tune = 0.0,
    shape: Shape = None,
) -> None:
    """Compile an ONNX file, with whatever zeros its weights have, into a .bp file."""
    check_output(output)
    start = time.monotonic()
    with show.Watching() as watching:
        artifact = compile_model(model, target=Target.named(target), shape=parse_shapes(shape), threads=threads,
                                 tune_s=tune, progress=lambda text, done: watching(Event(text, done, 1.0)))
    artifact.save(output)
    macs, kept = (sum(getattr(layer, key) for layer in artifact.layers) for key in ("macs", "kept_macs"))
    show.line(f"{output}: {show.megabytes(output.stat().st_size)}, {kept / 1e6:.1f} of {macs / 1e6:.1f} MMAC, "
              f"for {target}, in {time.monotonic() - start:.1f} s")


def inspect(
    model: Model,
    timed: Annotated[bool, typer.Option("--time", help="Run it and show each layer's time (of a .bp file).")] = False,
    threads: Threads = 1,
    shape: Shape = None,
    json_: Json = None,
) -> None:
    """Show a network layer by layer: an ONNX file's weights and zeros, or a compiled one's packing and times."""
    if model.suffix == ".bp":
        artifact = Artifact.load(model)
        rows = time_layers(artifact, threads=threads) if timed else [LayerTime(record) for record in artifact.layers]
        core = _core(artifact.target) if timed else None
        if json_ is not None:
            show.write_json({"layers": [row.to_json() for row in rows], "total": total(rows).to_json(), "core": core},
                            json_)
        if json_ == "-":
            return
        if timed:
            _show_times(model.name, rows, core)
        else:
            _show_layers(model.name, rows)
        return
    if timed:
        raise InputError("only a compiled network can be timed layer by layer", where=str(model),
                         fix="compile it first: blockpunch compile")
    from blockpunch.cli.weights import inspect_onnx

    inspect_onnx(model, parse_shapes(shape), json_)


def _show_layers(name: str, rows: list[LayerTime]) -> None:
    show.table(name, ("layer", "kind", "MMAC", "kept MMAC", "bytes", "packing", "why"), [
        (r.name, r.kind, r.macs / 1e6, r.kept_macs / 1e6, r.weight_bytes, r.packing, r.reason)
        for r in (row.record for row in rows)])


def _core(target: Target) -> dict[str, Any] | None:
    """What a core can do; None where there is no C compiler to measure it with."""
    try:
        return limits(target)
    except ToolchainError:
        return None


def _show_times(name: str, rows: list[LayerTime], core: dict[str, Any] | None) -> None:
    """The profile: what each step takes, does and moves, what binds it and how far it is from there."""
    def percent(share: float | None) -> str | None:
        return None if share is None else f"{100 * share:.0f} %"

    cells = [(row.record.name, row.ms, percent(row.share), row.gmacs_per_second, percent(row.peak_share),
              row.bytes_moved / 1e6, percent(row.bandwidth_share), row.bound,
              None if row.distance is None else f"{row.distance:.1f} x", row.record.packing)
             for row in (*rows, total(rows))]
    columns = ("layer", "ms", "time", "GMAC/s", "FMA", "MB", "memory", "bound", "from it", "schedule")
    show.table(name, columns, cells, tails=("layer",), caption=(
        "FMA: share of the core's peak, on kept multiply-adds. memory: share of the time that moving the MB takes at\n"
        "least. bound: what binds the step; from it: how many times as long as the larger of both bounds it takes."
        + ("" if core is None else f"\nA core: {core['fma_gmacs_per_second']:.1f} GMAC/s; " + ", ".join(
            f"{level} {speed:.0f}" for level, speed in core["gb_per_second"].items()) + " GB/s")))


def run(
    model: Annotated[Path, typer.Argument(help="A compiled network (.bp).", show_default=False)],
    input_: Annotated[list[str], typer.Option("--input", "-i", metavar="[NAME=]FILE.npy", show_default=False,
                                              help="An input array; once for each input.")],
    output: Annotated[Path, typer.Option("--output", "-o", show_default=False,
                                         help="FILE.npy for one output, FILE.npz for several.")],
    threads: Threads = 1,
) -> None:
    """Run a compiled network on arrays from .npy files."""
    check_output(output)
    with Session(model, threads=threads) as session:
        inputs = _read_inputs(input_, [spec.name for spec in session.inputs])
        results: dict[str, Any] = session.run(inputs)
    _save_arrays(results, output)
    for name, array in results.items():
        show.line(f"{name}: {list(array.shape)}, {array.min():.6g} .. {array.max():.6g}")


def _read_inputs(texts: list[str], names: list[str]) -> dict[str, Any]:
    """Arrays by input name; a single unnamed file belongs to the first input without a file."""
    arrays: dict[str, Any] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator:
            path = text
            left = [known for known in names if known not in arrays]
            if not left:
                raise InputError(f"{len(texts)} inputs given, the network has {len(names)}", where="--input",
                                 fix=f"its inputs: {', '.join(names)}")
            name = left[0]
        try:
            arrays[name] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"not a .npy array ({error})", where=path, fix="save it with numpy.save") from None
        if not isinstance(arrays[name], np.ndarray):
            raise InputError("holds several arrays", where=path, fix="save each input with numpy.save")
    return arrays


def _save_arrays(results: dict[str, Any], output: Path) -> None:
    import io

    buffer = io.BytesIO()
    if output.suffix == ".npz":
        np.savez(buffer, **results)
    elif len(results) == 1:
        np.save(buffer, next(iter(results.values())))
    else:
        raise OutputError(f"the network has {len(results)} outputs", where=str(output), fix="name a .npz file")
    write_atomic(output, buffer.getvalue())


def extract(
    model: Annotated[Path, typer.Argument(help="A compiled network (.bp).", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, made if missing.", show_default=False)],
) -> None:
    """Unpack a .bp file: manifest, weights, generated C, library, and what a C program needs to use them."""
    artifact = Artifact.load(model)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", where=str(output), fix="name another folder") from None
    for path in artifact.extract(output):
        show.line(str(path))
