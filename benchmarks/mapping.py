"""Predicted against measured latency of whole networks under random mixed plans, one thread.

    python benchmarks/mapping.py NET.onnx [...] [--table out/mapping/table.jsonl] [--plans 10]

Profiles what the table lacks first (minutes for each network). Measured is the sum of the steps, beside that of the
dense network in the same turns, at the pace of the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import LatencyTable, Network, profile
from blockpunch.mapping.grid import RATES, rates_for, schemes_for
from blockpunch.mapping.network import Cell
from blockpunch.mapping.profile import measure
from blockpunch.target import Target


def random_plan(network: Network, rng: np.random.Generator) -> dict[str, Cell]:
    """A scheme for each layer that is pruned by default, at rates around a random one, measured or not."""
    cells: dict[str, Cell] = {}
    base = rng.uniform(1.5, 6)
    for item in network.items:
        if not item.dense_because:
            schemes = schemes_for(item.layers[0])
            scheme = schemes[int(rng.integers(len(schemes)))]
            most = max(rates_for(scheme, item.layers[0]), default=RATES[0])
            cells[item.step] = scheme, float(f"{min(most, base * rng.uniform(0.7, 1.5)):.3g}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, default=Path("out/mapping/table.jsonl"))
    parser.add_argument("--plans", type=int, default=10)
    args = parser.parse_args()
    target = Target.host()
    for model in args.models:
        table = LatencyTable(args.table, target, model=str(model))
        network = Network(optimize(load_graph(model)), target)
        profile(network, table, lambda text, done, total: print(f"{text} ({done:.0f} of {total:.0f})", flush=True))
        rng, errors = np.random.default_rng(0), []
        for number in range(args.plans):
            cells = random_plan(network, rng)
            predicted = table.predict(network, cells).seconds
            measured = measure(network, table, cells)
            errors.append(predicted / measured - 1)
            print(f"{model.stem} {number}: predicted {predicted * 1e3:.3f} ms, measured {measured * 1e3:.3f} ms, "
                  f"{errors[-1]:+.1%}", flush=True)
        print(f"{model.stem}: worst {max(errors, key=abs):+.1%}, mean {np.mean(np.abs(errors)):.1%}", flush=True)


if __name__ == "__main__":
    main()
