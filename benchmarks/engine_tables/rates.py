"""Never slower by pruning: time against rate, for every regularity."""

from __future__ import annotations

import tempfile
from pathlib import Path

from blockpunch.schemes import REGULARITIES, Scheme
from engine_tables.models import BLOCK_PUNCHED, TITLES, Models
from engine_tables.peers import measure as run
from engine_tables.results import Row, Settings, markdown

NETWORKS = ("resnet50", "mobilenet-v2")
RATES = (1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16)
NOISE = 1.03
SCHEMES = {name: BLOCK_PUNCHED if name == "block-punched" else str(Scheme(name))
           for name, regularity in REGULARITIES.items() if regularity.prunes}


def keys(settings: Settings) -> list[str]:
    return [f"{network} {name}" for network in NETWORKS if settings.wants(network) for name in SCHEMES]


def measure(key: str, settings: Settings) -> Row:
    """All rates of one regularity in one run."""
    network, name = key.split()
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder), settings.tune)
        dense, ours = models.dense(network), {}
        for rate in RATES:
            file = models.pruned(dense, SCHEMES[name], rate, last=False)
            ours[f"{rate:g}"] = (models.compiled(file), file)
        result = run(key, ours, {}, seconds=settings.seconds)
    return {"ms": {label: engine.median_ms for label, engine in result.engines.items()}}


def rises(row: Row) -> list[str]:
    """The rates at which the network is slower than at a lower one, by more than noise."""
    found, least = [], float("inf")
    for label, ms in row["ms"].items():
        if ms > NOISE * least:
            found.append(label)
        least = min(least, ms)
    return found


def table(rows: dict[str, Row]) -> str:
    """Milliseconds; one table per network."""
    parts = []
    for network in NETWORKS:
        lines = [(key.split()[1], *row["ms"].values(), ", ".join(rises(row)) or "none")
                 for key, row in rows.items() if key.split()[0] == network]
        if lines:
            columns = (f"{TITLES[network]}, ms at rate", *(f"{rate:g}" for rate in RATES), "slower at")
            parts.append(markdown(columns, lines))
    return "\n\n".join(parts)


def plot(rows: dict[str, Row], path: Path) -> None:
    """Time over the dense time against the rate, both logarithmic, with the line of time as the rate has it."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, network in zip(figure.subplots(1, len(NETWORKS), sharey=True), NETWORKS, strict=True):
        for key, row in rows.items():
            if key.split()[0] == network:
                times = list(row["ms"].values())
                axes.plot(RATES, [ms / times[0] for ms in times], marker="o", markersize=3, label=key.split()[1])
        axes.plot(RATES, [1 / rate for rate in RATES], color="#999999", linestyle=":", label="1 / rate")
        axes.set(xscale="log", yscale="log", title=TITLES[network], xlabel="compression rate",
                 ylabel="time / dense time" if network == NETWORKS[0] else None)
        axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES], fontsize=7)
        axes.set_yticks([1, 0.5, 0.25, 0.125, 0.0625], ["1", "1/2", "1/4", "1/8", "1/16"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
