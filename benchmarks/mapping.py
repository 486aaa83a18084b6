"""Predicted against measured latency of whole networks under random mixed plans, one thread.

    python benchmarks/mapping.py NET.onnx [...] [--table out/mapping/table.jsonl] [--plans 10] [--seed 0] \
        [--picture FILE.png]

Profiles what the table lacks first (minutes for each network). Every plan is measured twice, the second time when all
have been measured once, in turns with the dense network, whose time tells the machine's pace; the lesser counts, as
whatever else runs on the machine only adds to it.
Networks that are finished are kept beside the table (``.predictions.json``) and are not measured again; a table that
was begun is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.atomic import write_text
from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import LatencyTable, Network, profile
from blockpunch.mapping.grid import rates_for, schemes_for
from blockpunch.mapping.network import Cell
from blockpunch.mapping.prediction import predict
from blockpunch.mapping.profile import measure
from blockpunch.target import Target

Pair = dict[str, Any]


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


def random_plans(network: Network, count: int, seed: int) -> list[dict[str, Cell]]:
    """The same ones each time."""
    rng = np.random.default_rng(seed)
    return [random_plan(network, rng) for _ in range(count)]


def compare(network: Network, table: LatencyTable, plans: list[dict[str, Cell]]) -> list[Pair]:
    """Milliseconds of random plans, and the machine's pace in each measurement."""
    turns = [[measure(network, table, cells) for cells in plans] for _ in range(2)]
    both = [[1e3 * turn[at][0] / turn[at][1] for turn in turns] for at in range(len(plans))]
    return [{"measured": min(times), "turns": times, "pace": [turn[at][1] for turn in turns]}
            for at, times in enumerate(both)]


def off(pair: Pair) -> float:
    """The prediction's error, a part of what was measured."""
    return float(pair["predicted"] / pair["measured"] - 1)


def look(network: Network, table: LatencyTable, plans: int, seed: int) -> dict[str, Any]:
    """Profile what the table lacks, then measure plans."""
    start, cpu, known = time.monotonic(), sum(os.times()[:4]), len(table)
    rounds = profile(network, table, lambda text, done, total: print(f"{text} ({done:.0f} of {total:.0f})", flush=True))
    facts = {"known_before": known, "rounds": rounds, "cells": len(table) - known,
             "profile_s": round(time.monotonic() - start), "profile_cpu_s": round(sum(os.times()[:4]) - cpu)}
    return {"header": table.header, "count": plans, "seed": seed, **facts,
            "pairs": compare(network, table, random_plans(network, plans, seed))}


def draw(found: dict[str, list[Pair]], path: Path) -> None:
    """Predicted over measured, a colour for each network, with the band of 8 %."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5.4), layout="constrained")
    times = [pair[which] for pairs in found.values() for pair in pairs for which in ("predicted", "measured")]
    ends = np.array([min(times) / 1.2, max(times) * 1.2])
    axes.fill_between(ends, 0.92 * ends, 1.08 * ends, color="#e4e7ec", label="within 8 %")
    axes.plot(ends, ends, color="#98a2b3", linewidth=1)
    for name, pairs in found.items():
        errors = [off(pair) for pair in pairs]
        label = f"{name}: worst {max(errors, key=abs):+.1%}, mean {np.mean(np.abs(errors)):.1%}"
        axes.scatter([pair["measured"] for pair in pairs], [pair["predicted"] for pair in pairs], s=26, label=label,
                     zorder=3)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
    axes.set_title("Whole networks under random mixed plans, one thread", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, default=Path("out/mapping/table.jsonl"))
    parser.add_argument("--plans", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the plans")
    parser.add_argument("--picture", type=Path, help="a .png to draw")
    args = parser.parse_args()
    target, store = Target.host(), args.table.with_suffix(".predictions.json")
    rows: dict[str, dict[str, Any]] = json.loads(store.read_text()) if store.exists() else {}
    for model in args.models:
        table, row = LatencyTable(args.table, target, model=str(model)), rows.get(model.stem, {})
        network = Network(optimize(load_graph(model)), target)
        if (row.get("header"), row.get("count"), row.get("seed")) != (table.header, args.plans, args.seed):
            rows[model.stem] = row = look(network, table, args.plans, args.seed)
            write_text(store, json.dumps(rows, indent=1) + "\n")
        for pair, cells in zip(row["pairs"], random_plans(network, args.plans, args.seed), strict=True):
            pair["predicted"] = 1e3 * predict(network, table, cells).seconds
        for number, pair in enumerate(row["pairs"]):
            print(f"{model.stem} {number}: predicted {pair['predicted']:.3f} ms, measured {pair['measured']:.3f} ms, "
                  f"{off(pair):+.1%} ({' and '.join(f'{ms:.3f}' for ms in pair['turns'])} ms at paces of "
                  f"{' and '.join(f'{pace:.2f}' for pace in pair['pace'])})")
    print("| network | table: rounds | cells | seconds | CPU seconds | plans, ms | worst | mean |\n|---|" + "---:|" * 7)
    for model in args.models:
        row, errors = rows[model.stem], [off(pair) for pair in rows[model.stem]["pairs"]]
        times = [pair["measured"] for pair in row["pairs"]]
        print(f"| {model.stem} | {row['rounds']} | {row['cells']} | {row['profile_s']} | {row['profile_cpu_s']} | "
              f"{min(times):.2f} to {max(times):.2f} | {max(errors, key=abs):+.1%} | {np.mean(np.abs(errors)):.1%} |",
              flush=True)
    if args.picture:
        draw({model.stem: rows[model.stem]["pairs"] for model in args.models}, args.picture)


if __name__ == "__main__":
    main()
