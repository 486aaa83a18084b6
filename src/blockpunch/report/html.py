"""Facts -> one HTML file: styles and pictures inside, nothing loaded from anywhere."""

from __future__ import annotations

from importlib import resources
from typing import Any

from blockpunch.errors import MissingExtraError
from blockpunch.report.facts import ReportFacts
from blockpunch.report.figures import engine_bars, frontier_curve, layer_bars, plan_bars, prediction_scatter


def render(facts: ReportFacts) -> str:
    """The report's HTML text.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("jinja2", "report", "writing the report") from None
    environment: Any = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                          undefined=jinja2.StrictUndefined)
    environment.filters.update(times=_times, ms=_ms, percent=_percent, big=_big, size=_size)
    source = resources.files("blockpunch.report") / "templates" / "report.html.j2"
    template = environment.from_string(source.read_text(encoding="utf-8"))
    left_dense = [layer for layer in facts.layers if layer.macs and not layer.pruned]
    pictures = {"layer_picture": layer_bars(facts), "plan_picture": plan_bars(facts)}
    if facts.engines:
        pictures["engine_picture"] = engine_bars(facts)
    if facts.mapping and facts.mapping.frontier:
        pictures["frontier_picture"] = frontier_curve(facts.mapping)
    if any(layer.ms and layer.predicted_ms for layer in facts.layers):
        pictures["prediction_picture"] = prediction_scatter(facts)
    text: str = template.render(facts=facts, left_dense=left_dense, pictures=pictures)
    return text


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}×" if value < 10 else f"{value:.1f}×"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _percent(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _big(value: float) -> str:
    """1234567 -> ``1.23 M``."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f}"


def _size(value: int) -> str:
    return f"{value / 2**20:.1f} MiB"
