"""How the time goes with threads, with the batch, and with the size of the image."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from blockpunch.artifact import Artifact
from blockpunch.measure.engines import random_inputs
from blockpunch.measure.engines.blockpunch import BlockpunchRunner
from blockpunch.measure.pinning import pinned
from engine_tables.models import BLOCK_PUNCHED, TITLES, Models
from engine_tables.peers import measure as run
from engine_tables.results import Row, Settings, markdown, versus

THREADS = {"resnet50": 1.85, "vgg16": 1.85, "mobilenet-v2": 1.6}
RATES = {"resnet50": 6.0, "vgg16": 8.0, "mobilenet-v2": 4.0}
BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (128, 160, 192, 224, 256, 320, 384, 448, 512)
FLAT = 1.15


def thread_keys(settings: Settings) -> list[str]:
    return [f"{network} {state}" for network in THREADS if settings.wants(network) for state in ("dense", "pruned")]


def measure_threads(key: str, settings: Settings) -> Row:
    """Wall-clock time with one and with two threads, in turns."""
    network, state = key.split()
    with tempfile.TemporaryDirectory() as folder, pinned(2):
        models = Models(Path(folder), settings.tune)
        file = models.pruned(models.dense(network), BLOCK_PUNCHED, RATES[network] if state == "pruned" else 1)
        runners = {count: BlockpunchRunner(models.compiled(file, threads=count), count, None) for count in (1, 2)}
        feed = random_inputs({spec.name: spec.shape for spec in runners[1].session.inputs})
        times: dict[int, list[int]] = {1: [], 2: []}
        for _ in range(12):
            for count, runner in runners.items():
                times[count] += runner.sample(feed, "wall", settings.seconds / 12)
        for runner in runners.values():
            runner.close()
    return {"ms": {str(count): statistics.median(values) / 1e6 for count, values in times.items()}}


def thread_table(rows: dict[str, Row]) -> str:
    """One line per build."""
    lines = []
    for key, row in rows.items():
        network, state = key.split()
        one, two = row["ms"]["1"], row["ms"]["2"]
        lines.append([f"{TITLES[network]}, {state}", one, two, versus(one / two, THREADS[network])])
    return markdown(("network", "1 thread, ms", "2 threads, ms", "gain"), lines)


def shape_keys(settings: Settings) -> list[str]:
    return [f"{network} {what}" for network in ("resnet50", "mobilenet-v2") if settings.wants(network)
            for what in ("batch", "side")]


def measure_shapes(key: str, settings: Settings) -> Row:
    """All batches, or all sizes, of one network in one run."""
    network, what = key.split()
    sizes = BATCHES if what == "batch" else SIDES
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), settings.tune)
        ours, macs = {}, {}
        for size in sizes:
            file = models.pruned(models.dense(network, **{what: size}), BLOCK_PUNCHED, RATES[network])
            ours[str(size)] = (models.compiled(file), file)
            macs[str(size)] = sum(layer.kept_macs for layer in Artifact.load(ours[str(size)][0]).layers)
        result = run(key, ours, {}, seconds=settings.seconds)
    return {"ms": {label: engine.median_ms for label, engine in result.engines.items()}, "kept_macs": macs}


def relative(key: str, row: Row) -> dict[str, float]:
    """Time per kept MAC of each size over that of batch 1, or of 224 pixels."""
    each = {label: ms / row["kept_macs"][label] for label, ms in row["ms"].items()}
    base = each["1" if key.endswith("batch") else "224"]
    return {label: value / base for label, value in each.items()}


def shape_table(rows: dict[str, Row]) -> str:
    """A table for each network and kind of size."""
    parts = []
    for key, row in rows.items():
        network, what = key.split()
        flat = relative(key, row)
        parts.append(f"{TITLES[network]} at rate {RATES[network]:g}:\n\n" + markdown(
            (what, *flat), [("ms", *row["ms"].values()),
                            ("time per MAC", *(versus(value, FLAT, at_most=True) for value in flat.values()))]))
    return "\n\n".join(parts)
