"""Every network, dense and under every regularity, compiled and compared with ONNX Runtime.

Prints one line per build: largest output difference relative to the largest output, with 1 and with 2 threads, time to
compile, and the artifact's size against its kept weights. Fails when a difference is above the bar. Rows that the same
code has measured before are taken from the file of results, so an interrupted check goes on where it was.

    python benchmarks/check_networks.py                        all of them, about half an hour on 2 cores
    python benchmarks/check_networks.py --only resnet50 --only vgg16 --scheme dense
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import blockpunch as bp
from blockpunch.data import data_root
from blockpunch.measure.bench import relative_error
from blockpunch.pruning import onnx_layers, prune_onnx
from blockpunch.schemes import REGULARITIES, Scheme
from blockpunch.target import host_cores
from networks import NETWORKS, export

BAR = 1e-4
SIZE_BAR = 1.10
RATES = (2.0, 6.0)
# Target and the number of threads that the schedule is made for; every build runs on 1 and on 2 threads.
BUILDS = (("x86-64-v4", 1), ("x86-64-v3", 2))
SHARED = {"mobilenet-v2-tflite": "mobilenet_v2_1.0_224.onnx", "yolox-nano": "yolox_nano.onnx"}
"""Trained networks that come as ONNX files: name and file in the data folder's ``models``."""
_INPUT_SCALE = {"yolox-nano": 64.0}  # pixels of 0..255 where others take values around 0


@dataclass(frozen=True)
class Row:
    """What was found about one build. ``size`` is the artifact's bytes over those of the kept weights (see ideal)."""

    network: str
    scheme: str
    rate: float
    target: str
    error1: float
    error2: float
    compile_s: float
    artifact_mb: float
    size: float

    @property
    def passed(self) -> bool:
        return max(self.error1, self.error2) <= BAR


def variants(rates: Sequence[float] = RATES) -> list[tuple[str, float]]:
    """(scheme, rate): dense, and every regularity at every rate."""
    pruning = [name for name, regularity in REGULARITIES.items() if regularity.prunes]
    return [("dense", 1.0), *((str(Scheme(name)), rate) for name in pruning for rate in rates)]


def source(name: str, folder: Path, size: int | None = None) -> Path | None:
    """The network's ONNX file; ``None`` where its data are not here."""
    if name in SHARED:
        root = data_root()
        path = root / "models" / SHARED[name] if root else None
        return path if path and path.exists() else None
    shape = NETWORKS[name].shape if size is None else (1, 3, size, size)
    try:
        return export(name, folder / f"{name}.onnx", shape)
    except (FileNotFoundError, ImportError):
        return None


def prune(path: Path, scheme: str, rate: float, folder: Path) -> tuple[Path, int]:
    """The pruned file and how many weights are left in its prunable layers."""
    plan = bp.Plan.uniform(onnx_layers(path), scheme, rate)
    pruned = folder / "pruned.onnx"
    return pruned, prune_onnx(path, plan, pruned).kept


def reference(path: Path, scale: float = 1.0) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Random inputs, and what ONNX Runtime makes of them."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(5)
    inputs = {i.name: (rng.normal(size=i.shape) * scale).astype(np.float32) for i in session.get_inputs()}
    return inputs, session.run(None, inputs)


def ideal(kept: int) -> float:
    """Bytes of the kept weights, and an index of four bytes for eight weights."""
    return kept * 4 * (1 + 1 / 8)


def check(network: str, path: Path, scheme: str, rate: float, kept: int, builds: Sequence[tuple[str, int]] = BUILDS,
          folder: Path | None = None) -> Iterator[Row]:
    """Compile ``path`` for every target that runs here, and compare."""
    inputs, expected = reference(path, _INPUT_SCALE.get(network, 1.0))
    for target, threads in builds:
        if not bp.Target.named(target).runs_here()[0]:
            continue
        start = time.perf_counter()
        artifact = bp.compile(path, target=target, threads=threads)
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            size = artifact.save(Path(temporary) / "net.bp").stat().st_size
        errors = []
        for count in (1, 2):
            with bp.Session(artifact, threads=count) as session:
                outputs = session.run(inputs)
            errors.append(relative_error([outputs[spec.name] for spec in artifact.outputs], expected))
        yield Row(network, scheme, rate, target, *errors, seconds, size / 1e6, size / ideal(kept))


def fingerprint() -> str:
    """A hash of the package's sources: results of other code do not count."""
    package = Path(bp.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".j2", ".c", ".h")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """Rows on disk, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self._path, self._code = path, fingerprint()
        self.rows: dict[tuple[str, str, float, str], Row] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            data: dict[str, Any] = json.loads(line)
            if data.pop("code") == self._code:
                self._put(Row(**data))

    def has(self, network: str, scheme: str, rate: float) -> list[Row]:
        rows = [self.rows.get((network, scheme, rate, target)) for target, _ in BUILDS
                if bp.Target.named(target).runs_here()[0]]
        return [row for row in rows if row] if all(rows) else []

    def add(self, row: Row) -> None:
        self._put(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps({**asdict(row), "code": self._code}) + "\n")

    def _put(self, row: Row) -> None:
        self.rows[row.network, row.scheme, row.rate, row.target] = row


HEADER = (f"{'network':<20} {'scheme':<18} {'rate':>4}  {'target':<9} {'1 thread':>9} {'2 threads':>9} "
          f"{'compile':>8} {'artifact':>9} {'size':>5}")


def line(row: Row) -> str:
    fault = "" if row.passed else f"  above {BAR:g}"
    return (f"{row.network:<20} {row.scheme:<18} {row.rate:>4g}  {row.target:<9} {row.error1:>9.1e} {row.error2:>9.1e} "
            f"{row.compile_s:>6.1f} s {row.artifact_mb:>6.1f} MB {row.size:>5.2f}{fault}")


def main() -> int:
    names = [*NETWORKS, *SHARED]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=names, help="a network; may be repeated (default: all)")
    parser.add_argument("--scheme", action="append", help="such as dense or block-punched:8x4 (default: all)")
    parser.add_argument("--rate", action="append", type=float, help=f"default: {RATES}")
    parser.add_argument("--results", type=Path, default=Path("build/check_networks.jsonl"), help="file of rows")
    parser.add_argument("--jobs", type=int, default=host_cores(), help="builds at a time (default: cores)")
    arguments = parser.parse_args()
    results, rows, missing = Results(arguments.results), [], []
    chosen = [(scheme, rate) for scheme, rate in variants(arguments.rate or RATES)
              if not arguments.scheme or scheme in arguments.scheme]
    print(HEADER, flush=True)
    pool = ProcessPoolExecutor(arguments.jobs, get_context("spawn"))
    try:
        for name in arguments.only or names:
            with tempfile.TemporaryDirectory() as temporary:
                for row in network_rows(name, chosen, results, pool, Path(temporary)):
                    if row is None:
                        missing.append(name)
                    else:
                        print(line(row), flush=True)
                        rows.append(row)
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from the {len(results.rows)} rows in {arguments.results}")
        return 130
    finally:
        pool.shutdown(cancel_futures=True)
    return verdict(rows, missing)


def network_rows(name: str, chosen: Sequence[tuple[str, float]], results: Results, pool: Executor,
                 folder: Path) -> Iterator[Row | None]:
    """The rows of one network in order, known ones and new ones; ``None`` where its weights are not here."""
    known = {variant: results.has(name, *variant) for variant in chosen}
    todo = [variant for variant in chosen if not known[variant]]
    path = source(name, folder) if todo else None
    if todo and path is None:
        yield None
        return
    new = pool.map(measure, [(name, path, scheme, rate) for scheme, rate in todo])
    for variant in chosen:
        for row in known[variant] or next(new):
            if not known[variant]:
                results.add(row)
            yield row


def measure(task: tuple[str, Path, str, float]) -> list[Row]:
    """Prune and check, in a process of its own."""
    name, path, scheme, rate = task
    with tempfile.TemporaryDirectory(dir=path.parent if name not in SHARED else None) as temporary:
        folder = Path(temporary)
        pruned, kept = prune(path, scheme, rate, folder)
        return list(check(name, pruned, scheme, rate, kept, folder=folder))


def verdict(rows: Sequence[Row], missing: Sequence[str]) -> int:
    failed = [row for row in rows if not row.passed]
    large = [row for row in rows if (row.network, row.scheme, row.rate) == ("resnet50", "block-punched:8x4", 6.0)
             and row.size > SIZE_BAR]
    worst = max((max(row.error1, row.error2) for row in rows), default=0.0)
    print(f"{len(rows)} builds, largest difference {worst:.1e} (bar {BAR:g}), {len(failed)} above it")
    if missing:
        print(f"left out, their weights are not here (BLOCKPUNCH_DATA): {', '.join(missing)}")
    for row in large:
        print(f"{row.network} for {row.target}: the artifact is {row.size:.2f} of its kept weights (bar {SIZE_BAR})")
    return 1 if failed or large or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
