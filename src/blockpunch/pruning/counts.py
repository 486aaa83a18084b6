"""What pruning did, counted from the weights themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerCount:
    """One layer: how many weights it had (zeros included) and how many are not zero now."""

    name: str
    scheme: str
    wanted_rate: float
    weights: int
    kept: int

    @property
    def rate(self) -> float:
        """Weights before / weights kept; infinite where none is left."""
        return self.weights / self.kept if self.kept else float("inf")


@dataclass(frozen=True)
class PruneReport:
    """Per-layer counts; printing it gives a table with a line for the whole network."""

    layers: list[LayerCount] = field(default_factory=list)

    @property
    def weights(self) -> int:
        """Weights of all prunable layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def kept(self) -> int:
        """Weights of all prunable layers that are not zero."""
        return sum(layer.kept for layer in self.layers)

    @property
    def rate(self) -> float:
        """Compression rate over all prunable layers."""
        return self.weights / self.kept if self.kept else float("inf")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``{"weights", "kept", "rate", "layers": {NAME: {...}}}``."""
        layers = {layer.name: {"scheme": layer.scheme, "wanted_rate": layer.wanted_rate, "weights": layer.weights,
                               "kept": layer.kept, "rate": layer.rate} for layer in self.layers}
        return {"weights": self.weights, "kept": self.kept, "rate": self.rate, "layers": layers}

    def __str__(self) -> str:
        rows = [("layer", "scheme", "weights", "kept", "rate")]
        rows += [(layer.name, layer.scheme, f"{layer.weights:,}", f"{layer.kept:,}", f"{layer.rate:.2f}")
                 for layer in self.layers]
        rows.append(("all", "", f"{self.weights:,}", f"{self.kept:,}", f"{self.rate:.2f}"))
        return table(rows)


def table(rows: Iterable[tuple[str, ...]], left: int = 2) -> str:
    """Rows as text in columns; the first ``left`` columns are aligned to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) if column < left else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in rows)
