"""A compiled network layer by layer: time, work, share of the core's peak, packing, and why."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from blockpunch.artifact import Artifact
from blockpunch.errors import BlockpunchError
from blockpunch.measure.engines.base import random_inputs
from blockpunch.measure.peak import fma_peak
from blockpunch.measure.pinning import pinned
from blockpunch.runtime.session import Session


@dataclass(frozen=True)
class LayerTime:
    """One step. ``ms`` is a median; ``share`` is of the whole network's time; ``peak_share`` of all cores' FMA peak."""

    name: str
    kind: str
    path: str
    macs: int
    kept_macs: int
    weight_bytes: int
    packing: str
    reason: str
    ms: float | None = None
    share: float = 0.0
    gmacs_per_second: float | None = None
    peak_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def static_layers(artifact: Artifact) -> list[LayerTime]:
    """What the artifact says of its steps, without running them."""
    return [LayerTime(s.name, s.kind, s.path, s.macs, s.kept_macs, s.weight_bytes, s.packing, s.reason)
            for s in artifact.layers]


def time_layers(artifact: Artifact, *, threads: int = 1, seconds: float = 1.0) -> list[LayerTime]:
    """Run a compiled network on random inputs for about ``seconds`` and time every step: medians over the runs.

    Raises:
        TargetMismatchError: this CPU cannot run it.
    """
    samples: list[list[float]] = []
    with pinned(threads), Session(artifact, threads=threads) as session:
        inputs = random_inputs({spec.name: spec.shape for spec in session.inputs})
        end = time.perf_counter() + seconds
        session.run(inputs)
        while len(samples) < 5 or time.perf_counter() < end:
            samples.append(list(session.run_profiled(inputs)[1]))
    try:
        peak: float | None = fma_peak(artifact.target) * threads
    except BlockpunchError:
        peak = None
    medians = [statistics.median(column) for column in zip(*samples, strict=True)]
    total = sum(medians) or 1.0
    return [_timed(row, seconds_, total, peak) for row, seconds_ in zip(static_layers(artifact), medians, strict=True)]


def _timed(row: LayerTime, seconds: float, total: float, peak: float | None) -> LayerTime:
    speed = row.kept_macs / seconds if seconds > 0 and row.kept_macs else None
    return LayerTime(**{**asdict(row), "ms": seconds * 1e3, "share": seconds / total,
                        "gmacs_per_second": None if speed is None else speed / 1e9,
                        "peak_share": None if speed is None or peak is None else speed / peak})
