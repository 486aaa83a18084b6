"""The report's pictures, as SVG text to be put into the page. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

import io
import re
from typing import Any

from blockpunch.errors import MissingExtraError
from blockpunch.report.facts import LayerFacts, ReportFacts

INK, MUTED, GRID = "#1d2939", "#667085", "#e4e7ec"
BEFORE, AFTER, KEPT = "#cfd8e6", "#0f766e", "#8aa0b8"
_STYLE = {"font.family": "sans-serif", "font.sans-serif": ["Inter", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
          "svg.fonttype": "none", "svg.hashsalt": "blockpunch", "font.size": 10, "text.color": INK,
          "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
          "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}


def _pyplot() -> Any:
    try:
        import matplotlib
        import matplotlib.pyplot as plt
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "drawing the report") from None
    matplotlib.use("svg", force=True)
    return plt


def _svg(plt: Any, figure: Any) -> str:
    """The figure as an ``<svg>`` element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    head = re.sub(r'\s(width|height|xmlns:xlink|version)="[^"]*"', "", head)
    return f'{head} width="100%">{body}'


def engine_bars(facts: ReportFacts) -> str:
    """Horizontal bars: milliseconds of every engine, the fastest last."""
    plt = _pyplot()
    order = sorted(facts.engines, key=lambda e: e.median_ms)
    colours = {"peer": BEFORE, "dense": KEPT, "pruned": AFTER}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(9, 0.5 * len(order) + 0.5), layout="constrained")
        times = [engine.median_ms for engine in order]
        axes.barh(range(len(order)), times, color=[colours[e.role] for e in order], height=0.62)
        axes.set_yticks(range(len(order)), [e.label for e in order], color=INK)
        axes.tick_params(length=0)
        axes.set_xlim(0, max(times) * 1.12)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        for i, engine in enumerate(order):
            axes.text(engine.median_ms + max(times) * 0.01, i, f"{engine.median_ms:.2f} ms", va="center",
                      fontweight="bold" if engine.role == "pruned" else "normal")
        axes.invert_yaxis()
        return _svg(plt, figure)


def layer_bars(facts: ReportFacts) -> str:
    """Two skylines over the layers in running order: work before and after, time before and after."""
    plt = _pyplot()
    layers = [layer for layer in facts.layers if layer.macs] or facts.layers
    width = min(14.0, max(9.0, 0.2 * len(layers) + 2))
    with plt.rc_context(_STYLE):
        figure, (work, clock) = plt.subplots(2, 1, figsize=(width, 6.4), sharex=True, layout="constrained")
        _skyline(work, [layer.macs / 1e6 for layer in layers], [layer.kept_macs / 1e6 for layer in layers], layers)
        work.set_title("Work: million multiply-accumulates", loc="left", fontsize=11, color=INK)
        _skyline(clock, [layer.dense_ms or 0 for layer in layers], [layer.ms or 0 for layer in layers], layers)
        clock.set_title("Time: milliseconds", loc="left", fontsize=11, color=INK)
        step = -(-len(layers) // 70)
        clock.set_xticks(range(0, len(layers), step), [_short(layer.name) for layer in layers[::step]], rotation=90,
                         fontsize=7 if len(layers) > 30 else 8.5)
        clock.set_xlim(-0.7, len(layers) - 0.3)
        return _svg(plt, figure)


def _skyline(axes: Any, before: list[float], after: list[float], layers: list[LayerFacts]) -> None:
    """Wide pale bars for before, narrow dark ones for after; grey where the layer was left dense."""
    positions = range(len(layers))
    colours = [AFTER if layer.pruned else KEPT for layer in layers]
    axes.bar(positions, before, width=0.86, color=BEFORE)
    axes.bar(positions, after, width=0.5, color=colours)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(y=0.08)


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else "…" + name[-most + 1:]
