"""The main table: ours, dense and pruned, beside every dense peer; also with AVX2 alone."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from blockpunch.artifact import Artifact
from blockpunch.measure.layers import time_layers, total
from blockpunch.measure.peak import fma_peak
from blockpunch.target import Target
from engine_tables.models import BLOCK_PUNCHED, TITLES, Models
from engine_tables.peers import TITLES as PEERS
from engine_tables.peers import error_of_ours
from engine_tables.peers import measure as run
from engine_tables.results import Row, Settings, markdown, percent, versus


class Bar(NamedTuple):
    """What a network is to reach: against the best dense peer, in share of FMA peak on kept MACs (of the convolutions
    alone, where so said), and how much slower than that peer our dense build may be."""

    rate: float
    ratio: float
    peak: float | None = None
    convolutions: bool = False
    dense: float | None = None


BARS = {
    "resnet50": Bar(6, 4.4, 0.70, dense=1.05), "vgg16": Bar(8, 3.8, 0.75, convolutions=True, dense=1.25),
    "mobilenet-v2": Bar(4, 2.6, 0.50, dense=1.05), "vgg16-bn-32": Bar(8, 6),
    "resnet18-32": Bar(8, 6, 0.65, dense=1.05), "mobilenet-v2-32": Bar(4, 2.6), "yolov5s": Bar(6, 4.2),
}
AVX2, AVX2_SLACK = "x86-64-v3", 0.75
DENSE, PRUNED = "ours dense", "ours pruned"


def keys(settings: Settings) -> list[str]:
    return [network for network in BARS if settings.wants(network)]


def measure(network: str, settings: Settings, target: str = "host") -> Row:
    """Export, prune, compile, and run all engines side by side."""
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), settings.tune)
        dense = models.dense(network)
        pruned = models.pruned(dense, BLOCK_PUNCHED, BARS[network].rate)
        built = {path: models.compiled(path, target=target) for path in (dense, pruned)}
        result = run(network, {DENSE: (built[dense], dense), PRUNED: (built[pruned], pruned)},
                     {name: (name, dense) for name in settings.peers}, seconds=settings.seconds)
        artifact = Artifact.load(built[pruned])
        layers = time_layers(artifact, seconds=min(settings.seconds, 2.0))
    convolutions = total([row for row in layers if row.record.kind in ("conv", "depthwise")])
    kept, peak = sum(layer.kept_macs for layer in artifact.layers), fma_peak(Target.named(target))
    seconds = result.engines[PRUNED].median_ms / 1e3  # CPU time; the profile's clock is the wall's: shares are taken
    return {"ms": {name: engine.median_ms for name, engine in result.engines.items()},
            "spread": {name: engine.spread for name, engine in result.engines.items()},
            "versions": {name: engine.version for name, engine in result.engines.items()},
            "error": error_of_ours(result),
            "macs": sum(layer.macs for layer in artifact.layers), "kept_macs": kept,
            "peak_share": kept / seconds / peak,
            "convolutions_peak_share": convolutions.record.kept_macs / (seconds * convolutions.share) / peak,
            "layers": [row.to_json() for row in layers]}


def measure_avx2(network: str, settings: Settings) -> Row:
    """The same with our code for AVX2, beside the one peer that can be held to it: OpenVINO, through oneDNN.

    The variable is read when OpenVINO is loaded: this part needs a process of its own. DeepSparse's NM_ARCH=avx2 leaves
    its convolutions above the AVX2 peak; ONNX Runtime, ncnn and MNN have no such switch.
    """
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    return measure(network, replace(settings, peers=tuple(p for p in settings.peers if p == "openvino")), AVX2)


def peers_by_time(row: Row) -> list[tuple[str, float]]:
    """(engine, ms), the fastest first."""
    times = [(name, ms) for name, ms in row["ms"].items() if name not in (DENSE, PRUNED)]
    return sorted(times, key=lambda item: item[1])


def table(rows: dict[str, Row], slack: float = 1.0) -> str:
    """One line per network; ``slack`` times the bars is enough."""
    lines = []
    for network, row in rows.items():
        bar, peers, ms = BARS[network], peers_by_time(row), row["ms"]
        best, second = [*peers, (None, None), (None, None)][:2]
        share = row["convolutions_peak_share" if bar.convolutions else "peak_share"]
        lines.append([
            TITLES[network], f"{bar.rate:g}", _named(best), _named(second), ms[DENSE], ms[PRUNED],
            versus(best[1] and best[1] / ms[PRUNED], bar.ratio * slack), f"{ms[DENSE] / ms[PRUNED]:.2f}",
            f"{percent(share)}{' (conv)' if bar.convolutions else ''}"
            + (f" (≥ {percent(bar.peak)})" if bar.peak else ""), f"{row['error']:.0e}"])
    columns = ("network", "rate", "best dense peer, ms", "runner-up, ms", "ours dense, ms", "ours pruned, ms",
               "best peer / ours pruned", "ours dense / pruned", "of FMA peak, kept MACs", "error")
    return markdown(columns, lines)


def _named(peer: tuple[str | None, float | None]) -> str | None:
    return None if peer[0] is None else f"{peer[1]:.2f} {PEERS[peer[0]]}"


def dense_table(rows: dict[str, Row]) -> str:
    """Our dense builds beside all dense peers."""
    names = list(dict.fromkeys(name for row in rows.values() for name, _ in peers_by_time(row)))
    lines = []
    for network, row in rows.items():
        peers = dict(peers_by_time(row))
        best = min(peers.values(), default=None)
        lines.append([TITLES[network], row["ms"][DENSE], *(peers.get(name) for name in names),
                      versus(best and row["ms"][DENSE] / best, BARS[network].dense, at_most=True)])
    return markdown(("network, ms", "ours dense", *(PEERS[name] for name in names), "ours / best peer"), lines)


def both_tables(rows: dict[str, Row]) -> str:
    """Pruned against dense peers, then dense against dense."""
    return f"{table(rows)}\n\nWithout zeros:\n\n{dense_table(rows)}"


def readme_table(rows: dict[str, Row]) -> str:
    """The main table in short."""
    lines = []
    for network, row in rows.items():
        best, ms = peers_by_time(row)[0], row["ms"]
        lines.append([TITLES[network], f"{BARS[network].rate:g}", f"{best[1]:.2f} ({PEERS[best[0]]})", ms[DENSE],
                      f"**{ms[PRUNED]:.2f}**", f"**{best[1] / ms[PRUNED]:.2f}×**", f"{ms[DENSE] / ms[PRUNED]:.2f}×",
                      f"{row['error']:.0e}"])
    return markdown(("network", "rate", "best dense peer, ms", "ours dense, ms", "ours pruned, ms",
                     "best peer → pruned", "ours dense → pruned", "error"), lines)


def avx2_tables(rows: dict[str, Row]) -> str:
    """Like :func:`both_tables`, with the bars that count there."""
    return f"{table(rows, AVX2_SLACK)}\n\nWithout zeros:\n\n{dense_table(rows)}"


def plot(rows: dict[str, Row], path: Path) -> None:
    """Times over that of the best dense peer, for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (label, colour) in enumerate(((DENSE, "#9db4c8"), (PRUNED, "#1f5f99"))):
        heights = [min(ms for _, ms in peers_by_time(row)) / row["ms"][label] for row in rows.values()]
        bars = axes.bar([i + 0.4 * number for i in range(len(rows))], heights, 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f")
    axes.axhline(1, color="#444444", linewidth=1)
    axes.set_xticks([i + 0.2 for i in range(len(rows))],
                    [f"{TITLES[name]}\nrate {BARS[name].rate:g}" for name in rows], fontsize=8)
    axes.set_ylabel("times as fast as\nthe best dense peer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
