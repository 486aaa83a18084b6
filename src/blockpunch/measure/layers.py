"""A compiled network layer by layer: time, work, bytes, and which bound of the core binds.

Two bounds of a step follow from its record. The *FMA* bound is the time that its kept multiply-adds take at the core's
peak. The *memory* bound is the time that its bytes take at the measured bandwidth of the level of the memory that they
live in: weights are read once in a run, so they live where the whole network fits; inputs and results live where the
step's own bytes fit. What neither explains is overhead: loads from the first-level cache, lanes lost at the edges of
maps, activations, starting the step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from blockpunch.artifact import Artifact
from blockpunch.errors import BlockpunchError
from blockpunch.manifest import LayerRecord
from blockpunch.measure.engines.base import random_inputs
from blockpunch.measure.peak import fma_peak, memory_levels
from blockpunch.measure.pinning import pinned
from blockpunch.runtime.session import Session
from blockpunch.target import Target

_MEASURED = ("ms", "share", "fma_ms", "memory_ms", "level")

@dataclass(frozen=True)
class LayerTime:
    """One step, or the sum of all. Times are ms; None where nothing was measured.

    Attributes:
        record: what the artifact says of the step: work, weights, schedule and its reason.
        ms: median time.
        share: part of the whole network's time.
        fma_ms, memory_ms: the two bounds.
        level: the furthest level of the memory that its bytes come from (``L2``, ``L3``, ``DRAM``).
    """

    record: LayerRecord
    ms: float | None = None
    share: float = 0.0
    fma_ms: float | None = None
    memory_ms: float | None = None
    level: str = ""

    @property
    def bytes_moved(self) -> int:
        """Weights, indices, inputs and results, each once."""
        return self.record.weight_bytes + self.record.read_bytes + self.record.written_bytes

    @property
    def gmacs_per_second(self) -> float | None:
        """Kept multiply-adds over time."""
        return self.record.kept_macs / self.ms / 1e6 if self.ms and self.record.kept_macs else None

    @property
    def gb_per_second(self) -> float | None:
        """Bytes moved over time."""
        return self.bytes_moved / self.ms / 1e6 if self.ms else None

    @property
    def peak_share(self) -> float | None:
        """Of the FMA peak of all cores."""
        return self.fma_ms / self.ms if self.fma_ms and self.ms else None

    @property
    def bandwidth_share(self) -> float | None:
        """Of the time, how much moving the bytes would take alone."""
        return self.memory_ms / self.ms if self.memory_ms is not None and self.ms else None

    @property
    def bound(self) -> str | None:
        """What takes most of the time: ``FMA``, a level of the memory, or ``overhead``."""
        if self.ms is None or self.fma_ms is None or self.memory_ms is None:
            return None
        least = max(self.fma_ms, self.memory_ms)
        if self.ms > 2 * least:
            return "overhead"
        return "FMA" if self.fma_ms >= self.memory_ms else self.level

    @property
    def distance(self) -> float | None:
        """Time over the larger of the two bounds: 1 is all that the core can do."""
        least = max(self.fma_ms or 0.0, self.memory_ms or 0.0)
        return self.ms / least if self.ms and least else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, derived figures included; :meth:`from_json` reads it."""
        derived = ("bytes_moved", "gmacs_per_second", "gb_per_second", "peak_share", "bandwidth_share", "bound",
                   "distance")
        record, own = asdict(self.record), {name: getattr(self, name) for name in _MEASURED}
        return record | own | {name: getattr(self, name) for name in derived}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LayerTime:
        """What :meth:`to_json` wrote."""
        record = LayerRecord(**{field.name: data[field.name] for field in fields(LayerRecord)})
        return LayerTime(record, **{name: data[name] for name in _MEASURED})


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
    medians = [statistics.median(column) * 1e3 for column in zip(*samples, strict=True)]
    try:
        bounds = Bounds(artifact, threads)
    except BlockpunchError:  # no C compiler here to measure them with
        bounds = None
    whole = sum(medians) or 1.0
    return [LayerTime(record, ms, ms / whole, *(bounds.of(record) if bounds else ()))
            for record, ms in zip(artifact.layers, medians, strict=True)]


class Bounds:
    """The least time of a step on ``threads`` cores, by their FMA peak and by the bandwidth of one core times theirs.

    Raises:
        ToolchainError: no C compiler to build the measuring loops.
    """

    def __init__(self, artifact: Artifact, threads: int = 1) -> None:
        self._threads = threads
        self._macs_per_ms = fma_peak(artifact.target) * threads / 1e3
        self._levels = memory_levels(artifact.target)
        self._weights = self._level(artifact.manifest.weights_bytes + artifact.manifest.scratch_bytes)

    def _level(self, size: int) -> int:
        """Number of the nearest level that ``size`` bytes fit into."""
        return next(i for i, level in enumerate(self._levels) if level.capacity is None or size <= level.capacity)

    def of(self, record: LayerRecord) -> tuple[float, float, str]:
        """(FMA bound in ms, memory bound in ms, the furthest level that its bytes come from)."""
        moved = record.read_bytes + record.written_bytes
        values = self._level(moved + record.weight_bytes)
        parts = [(self._levels[self._weights], record.weight_bytes), (self._levels[values], moved)]
        memory = sum(size / (level.bytes_per_second * self._threads) for level, size in parts) * 1e3
        furthest = max(values, self._weights if record.weight_bytes else 0)
        return record.kept_macs / self._macs_per_ms, memory, self._levels[furthest].name


def total(rows: Sequence[LayerTime]) -> LayerTime:
    """All steps as one: sums of times, work, bytes and bounds; its level is the one that most of the bytes need."""
    def add(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else sum(values)

    kinds = ("macs", "kept_macs", "weight_bytes", "read_bytes", "written_bytes")
    sums = {name: sum(getattr(row.record, name) for row in rows) for name in kinds}
    by_level: dict[str, float] = {}
    for row in rows:
        by_level[row.level] = by_level.get(row.level, 0.0) + (row.memory_ms or 0.0)
    record = LayerRecord(name="total", kind="", path="", packing="", reason="", **sums)
    return LayerTime(record, add("ms"), sum(row.share for row in rows), add("fma_ms"), add("memory_ms"),
                     max(by_level, key=lambda name: by_level[name], default=""))


def limits(target: Target) -> dict[str, Any]:
    """What one core of this machine can do, as plain data: the figures that :class:`Bounds` are made of.

    Raises:
        TargetMismatchError: this machine cannot run the target's code.
        ToolchainError: no C compiler to build the measuring loops.
    """
    return {"fma_gmacs_per_second": fma_peak(target) / 1e9,
            "gb_per_second": {level.name: level.bytes_per_second / 1e9 for level in memory_levels(target)}}
