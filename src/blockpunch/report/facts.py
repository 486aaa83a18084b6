"""What a report tells, as plain data: made by the main job, kept as JSON, drawn by :mod:`blockpunch.report.html`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from blockpunch.measure.quality import Comparison


@dataclass(frozen=True)
class LayerFacts:
    """One step of the compiled network, before (our own dense build) and after pruning. Times in milliseconds."""

    name: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    rate: float
    macs: int
    kept_macs: int
    dense_ms: float | None
    ms: float | None
    peak_share: float | None
    packing: str
    reason: str
    predicted_ms: float | None = None

    @property
    def pruned(self) -> bool:
        """Whether the plan removes weights here; zeros that a layer came with do not count."""
        return self.rate > 1

    @property
    def speedup(self) -> float | None:
        """Time before over time after."""
        return self.dense_ms / self.ms if self.dense_ms and self.ms else None


@dataclass(frozen=True)
class EngineTime:
    """A bar of the comparison; ``role`` is ``peer`` (dense model), ``dense`` (ours, dense) or ``pruned`` (ours)."""

    label: str
    role: str
    median_ms: float
    min_ms: float
    spread: float
    max_rel_error: float | None
    version: str


@dataclass(frozen=True)
class MappingFacts:
    """How the plan was chosen.

    Attributes:
        method: ``exact`` or ``rules``.
        goal: in words.
        dense_ms, predicted_ms: of the whole network by the latency table.
        rest_ms: of its steps without weights.
        cost: of the plan; None where no errors were weighed.
        frontier: (ms, cost) of the best plans, from the fastest to dense.
        trials: (ms, cost, points of accuracy lost, their standard error) of plans that were tried.
        layers: step -> predicted ms.
    """

    method: str
    goal: str
    dense_ms: float
    predicted_ms: float
    rest_ms: float
    cost: float | None
    frontier: list[tuple[float, float]]
    trials: list[tuple[float, float, float, float]]
    layers: dict[str, float]

    @staticmethod
    def from_json(data: dict[str, Any]) -> MappingFacts:
        """From plain data as ``asdict`` makes it, through JSON or not."""
        return MappingFacts(**{**data, "frontier": [(point[0], point[1]) for point in data["frontier"]],
                               "trials": [(t[0], t[1], t[2], t[3]) for t in data["trials"]]})


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report shows."""

    model: str
    target: str
    threads: int
    created: str
    version: str
    plan: str
    engines: list[EngineTime]
    layers: list[LayerFacts]
    weights: int
    kept_weights: int
    dense_bytes: int
    pruned_bytes: int
    machine: dict[str, Any]
    comparison: Comparison | None = None
    recovery: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    command: str = ""
    mapping: MappingFacts | None = None

    def role(self, role: str) -> EngineTime | None:
        """The fastest engine of a role, or None."""
        return min((e for e in self.engines if e.role == role), key=lambda e: e.median_ms, default=None)

    @property
    def own_gain(self) -> float | None:
        """Our dense build's time over the pruned one's: what pruning alone brought."""
        dense, pruned = self.role("dense"), self.role("pruned")
        return dense.median_ms / pruned.median_ms if dense and pruned else None

    @property
    def peer_gain(self) -> float | None:
        """The best dense peer's time over the pruned network's."""
        peer, pruned = self.role("peer"), self.role("pruned")
        return peer.median_ms / pruned.median_ms if peer and pruned else None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense network."""
        return sum(layer.macs for layer in self.layers)

    @property
    def kept_macs(self) -> int:
        """Multiply-accumulates that are left."""
        return sum(layer.kept_macs for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> ReportFacts:
        """The facts that :meth:`to_json` wrote."""
        comparison, mapping = data.get("comparison"), data.get("mapping")
        return ReportFacts(**{
            **data, "engines": [EngineTime(**entry) for entry in data["engines"]],
            "layers": [LayerFacts(**{**entry, "shape": tuple(entry["shape"])}) for entry in data["layers"]],
            "comparison": Comparison(**comparison) if comparison else None,
            "mapping": MappingFacts.from_json(mapping) if mapping else None})
