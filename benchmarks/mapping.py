"""Predicted against measured latency of whole networks under random mixed plans, one thread.

    python benchmarks/mapping.py NET.onnx [...] [--table out/mapping/table.jsonl] [--plans 10] [--picture FILE.png]

Profiles what the table lacks first (minutes for each network). Every plan is measured twice, the second time when all
have been measured once, in turns with the dense network, whose time tells the machine's pace; the mean counts.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np

from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import LatencyTable, Network, profile
from blockpunch.mapping.coupling import predict
from blockpunch.mapping.grid import rates_for, schemes_for
from blockpunch.mapping.network import Cell
from blockpunch.mapping.profile import measure
from blockpunch.target import Target


def random_plan(network: Network, rng: np.random.Generator) -> dict[str, Cell]:
    """A scheme for each layer that is pruned by default, at rates around a random one, measured or not."""
    cells: dict[str, Cell] = {}
    base = rng.uniform(1.5, 6)
    for item in network.items:
        if not item.dense_because:
            schemes = [scheme for scheme in schemes_for(item.layers[0]) if rates_for(scheme, item.layers[0])]
            scheme = schemes[int(rng.integers(len(schemes)))]
            most = max(rates_for(scheme, item.layers[0]))
            cells[item.step] = scheme, float(f"{min(most, base * rng.uniform(0.7, 1.5)):.3g}")
    return cells


def compare(network: Network, table: LatencyTable, count: int) -> list[tuple[float, float]]:
    """(predicted, measured) seconds of random plans."""
    rng = np.random.default_rng(0)
    plans = [random_plan(network, rng) for _ in range(count)]
    measured = np.array([[measure(network, table, cells) for cells in plans] for _ in range(2)]).mean(0)
    return [(predict(network, table, cells).seconds, float(seconds))
            for cells, seconds in zip(plans, measured, strict=True)]


def draw(found: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Predicted over measured, a colour for each network, with the band of 8 %."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    times = [1e3 * seconds for pairs in found.values() for pair in pairs for seconds in pair]
    ends = np.array([min(times) / 1.2, max(times) * 1.2])
    axes.fill_between(ends, 0.92 * ends, 1.08 * ends, color="#e4e7ec", label="within 8 %")
    axes.plot(ends, ends, color="#98a2b3", linewidth=1)
    for name, pairs in found.items():
        errors = [predicted / measured - 1 for predicted, measured in pairs]
        label = f"{name}: worst {max(errors, key=abs):+.1%}, mean {np.mean(np.abs(errors)):.1%}"
        axes.scatter([1e3 * m for _, m in pairs], [1e3 * p for p, _ in pairs], s=26, label=label, zorder=3)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
    axes.set_title("Whole networks under random mixed plans, one thread", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, default=Path("out/mapping/table.jsonl"))
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--picture", type=Path, help="a .png to draw")
    args = parser.parse_args()
    target, found = Target.host(), {}
    for model in args.models:
        table = LatencyTable(args.table, target, model=str(model))
        network = Network(optimize(load_graph(model)), target)
        start, cpu = time.monotonic(), sum(os.times()[:4])
        rounds = profile(network, table, lambda text, done, total: print(f"{text} ({done:.0f} of {total:.0f})"))
        print(f"{model.stem}: {rounds} rounds, {time.monotonic() - start:.0f} s, "
              f"{sum(os.times()[:4]) - cpu:.0f} s of one core")
        pairs = found[model.stem] = compare(network, table, args.plans)
        for number, (predicted, measured) in enumerate(pairs):
            print(f"{model.stem} {number}: predicted {predicted * 1e3:.3f} ms, measured {measured * 1e3:.3f} ms, "
                  f"{predicted / measured - 1:+.1%}")
        errors = [predicted / measured - 1 for predicted, measured in pairs]
        print(f"{model.stem}: worst {max(errors, key=abs):+.1%}, mean {np.mean(np.abs(errors)):.1%}", flush=True)
    if args.picture:
        draw(found, args.picture)


if __name__ == "__main__":
    main()
