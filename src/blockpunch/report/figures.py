"""The report's pictures, as SVG text to be put into the page. Needs matplotlib (extra ``report``)."""

from __future__ import annotations

import io
import re
from typing import Any

from blockpunch.errors import MissingExtraError
from blockpunch.report.facts import LayerFacts, MappingFacts, ReportFacts

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
    with plt.rc_context(_STYLE):
        figure, (work, clock) = plt.subplots(2, 1, figsize=(_width(layers), 6.4), sharex=True, layout="constrained")
        _skyline(work, [layer.macs / 1e6 for layer in layers], [layer.kept_macs / 1e6 for layer in layers], layers)
        work.set_title("Work: million multiply-accumulates", loc="left", fontsize=11, color=INK)
        _skyline(clock, [layer.dense_ms or 0 for layer in layers], [layer.ms or 0 for layer in layers], layers)
        clock.set_title("Time: milliseconds", loc="left", fontsize=11, color=INK)
        _name_layers(clock, layers)
        return _svg(plt, figure)


def _width(layers: list[LayerFacts]) -> float:
    """Inches that so many layers need."""
    return min(14.0, max(9.0, 0.2 * len(layers) + 2))


def _name_layers(axes: Any, layers: list[LayerFacts]) -> None:
    """Their names below the axis, as many as can be read."""
    step = -(-len(layers) // 70)
    axes.set_xticks(range(0, len(layers), step), [_short(layer.name) for layer in layers[::step]], rotation=90,
                    fontsize=7 if len(layers) > 30 else 8.5)
    axes.set_xlim(-0.7, len(layers) - 0.3)


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


def plan_bars(facts: ReportFacts) -> str:
    """The plan over the layers in running order: height is the rate, colour the scheme."""
    plt = _pyplot()
    layers = [layer for layer in facts.layers if layer.scheme]
    schemes = sorted({layer.scheme for layer in layers if layer.pruned})
    colours = dict(zip(schemes, _spread(len(schemes)), strict=True))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(_width(layers), 3.6), layout="constrained")
        for scheme in schemes:
            at = [i for i, layer in enumerate(layers) if layer.pruned and layer.scheme == scheme]
            axes.bar(at, [layers[i].rate - 1 for i in at], bottom=1, width=0.8, color=colours[scheme],
                     label=f"{scheme} ({len(at)})")
        dense = [i for i, layer in enumerate(layers) if not layer.pruned]
        axes.scatter(dense, [1] * len(dense), s=12, color=KEPT, zorder=3, label=f"dense ({len(dense)})")
        axes.set_ylim(0.85, max([layer.rate for layer in layers] + [2]) * 1.06)
        axes.set_ylabel("weights before / weights kept")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        _name_layers(axes, layers)
        axes.legend(frameon=False, fontsize=9, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0))
        return _svg(plt, figure)


def _spread(count: int) -> list[str]:
    """Colours that tell schemes apart, the accent first."""
    names = [AFTER, "#d97706", "#4f6bed", "#b4437c", "#65a30d", "#7c5cbf", "#0891b2", "#a16207", "#be123c", "#334155"]
    return [names[i % len(names)] for i in range(count)]


def frontier_curve(mapping: MappingFacts) -> str:
    """The cost of the best plan at each latency, the chosen one, and the points lost by those that were tried."""
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
        most = max(cost for _, cost in mapping.frontier)
        shown = [(ms, cost) for ms, cost in mapping.frontier if cost > most / 1e4] or mapping.frontier
        axes.plot(*zip(*shown, strict=True), color=KEPT, linewidth=1.8, zorder=2)
        axes.axvline(mapping.dense_ms, color=BEFORE, linewidth=1.2, zorder=1)
        axes.annotate("dense", (mapping.dense_ms, 0.97), xycoords=("data", "axes fraction"), xytext=(-4, 0),
                      textcoords="offset points", ha="right", va="top", color=MUTED)
        if most > 0:
            axes.set_yscale("log")
        for ms, cost, points, _ in mapping.trials:
            axes.scatter([ms], [cost], s=26, color="#fff", edgecolors=INK, zorder=3)
            axes.annotate(f"−{points:.1f}" if points > 0 else f"+{-points:.1f}", (ms, cost), fontsize=8.5,
                          xytext=(-6, -11), ha="right", textcoords="offset points")
        chosen = min(mapping.frontier, key=lambda point: abs(point[1] - (mapping.cost or 0)))
        axes.scatter([chosen[0]], [chosen[1]], s=70, color=AFTER, zorder=4)
        axes.annotate(f"chosen: {mapping.dense_ms / mapping.predicted_ms:.2f}×", chosen, xytext=(9, 9), color=AFTER,
                      textcoords="offset points", fontweight="bold")
        axes.set_xlabel("predicted ms")
        axes.set_ylabel("cost: what the answer feels of the errors")
        axes.grid(color=GRID, linewidth=0.8)
        axes.tick_params(length=0, which="both")
        return _svg(plt, figure)


def prediction_scatter(facts: ReportFacts) -> str:
    """Predicted over measured milliseconds of every layer with weights, on logarithmic axes."""
    plt = _pyplot()
    from matplotlib import ticker

    rows = [(layer.ms, layer.predicted_ms, layer.pruned) for layer in facts.layers if layer.ms and layer.predicted_ms]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
        ends = [min(min(row[:2]) for row in rows) / 1.3, max(max(row[:2]) for row in rows) * 1.3]
        axes.plot(ends, ends, color=BEFORE, linewidth=1.2, zorder=1)
        for pruned, colour, label in ((False, KEPT, "dense"), (True, AFTER, "pruned")):
            points = [row for row in rows if row[2] == pruned]
            axes.scatter([row[0] for row in points], [row[1] for row in points], s=20, color=colour, label=label,
                         zorder=2)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured ms", ylabel="predicted ms")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_locator(ticker.NullLocator())
        axes.grid(color=GRID, linewidth=0.8)
        axes.tick_params(length=0)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
        return _svg(plt, figure)
