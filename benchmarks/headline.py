"""The paper's comparison in one engine: mapped networks beside one scheme everywhere, at equal accuracy.

    python benchmarks/headline.py resnet20 --cifar cifar-10-batches-py [--epochs 5] [--drop 0.3]

Every way of choosing is tried at several strengths. Each network is pruned in one shot on the same photos, trained for
the same number of epochs (none by default), compiled, and timed in one interleaved run. The fastest network of each way
that loses at most ``--drop`` points on one half of the test photos is its result; the other half, which chooses
nothing, says what became of it. (Training photos cannot choose: the dense network knows them by heart.) "Pattern only"
is PatDNN's way: patterns and connectivity on 3x3 layers, whole filters elsewhere. Rows that are in the file of results
already are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from torch import nn

import blockpunch as bp
from blockpunch.atomic import make_folder, write_text
from blockpunch.data import cifar10
from blockpunch.errors import PlanError
from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Goal, LatencyTable, Network, profile
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.exact import Exact
from blockpunch.mapping.rules import map_rules
from blockpunch.measure.bench import OURS, Entry, bench_entries
from blockpunch.plan import Plan
from blockpunch.pruning import Pruner, module_layers, prune_oneshot_
from blockpunch.pruning.batches import ImageBatches
from blockpunch.pruning.layer_errors import layer_errors
from blockpunch.pruning.recover import Recipe, fine_tune
from blockpunch.target import Target
from cifar import accuracy, dense_network, frozen_copy, normalise
from networks import export_module

RATES, SPEEDUPS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0), (1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0)
LADDERS: dict[str, Sequence[float]] = {
    "pattern only": (2.25, 3.0, 3.6, 5.0, 8.0), "filter": RATES, "unstructured": RATES, "block-punched:8x4": RATES,
    "rules": SPEEDUPS, "exact": SPEEDUPS}
SHAPE = (1, 3, 32, 32)


class Task:
    """A dense network; photos to fit on, to train on and to judge by; its latency table and frontier."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, dense_network(options.network, options.weights)
        pixels, labels = cifar10(options.cifar, "train")
        order = np.random.default_rng(0).permutation(len(pixels))
        self.photos = list(normalise(pixels[order[:options.photos]]).split(100))
        self.pixels, self.labels, self.test = pixels, labels, cifar10(options.cifar, "test")
        self.layers = module_layers(self.model)
        self.network = Network(optimize(load_graph(self.model, torch.zeros(SHAPE))), Target.host())
        self.table = LatencyTable(options.out / "table.jsonl", Target.host(), model=options.network)
        self.exact: Exact | None = None

    def prepare(self) -> None:
        """What mappings choose from: latencies, and the error of each layer."""
        profile(self.network, self.table, lambda text, done, total: None)
        store = self.options.out / f"{self.options.network}.errors.json"
        errors = layer_errors(self.model, self.photos, contenders(self.network, self.table), store=store)
        self.exact = Exact.solve(self.network, self.table, errors.errors, errors.sensitivity)

    def plan(self, way: str, strength: float) -> Plan | None:
        """Of a way of choosing; None where it cannot go so far."""
        if way == "pattern only":
            plan = Plan.uniform(self.layers, "filter", strength)
            threes = [layer.name for layer in self.layers if layer.shape[2:] == (3, 3)]
            patterns = Plan.uniform(self.layers, "pattern", strength, only=threes)
            plan.layers.update({name: patterns.layers[name] for name in threes})
            return plan
        if way not in ("rules", "exact"):
            return Plan.uniform(self.layers, way, strength)
        if self.exact is None:
            self.prepare()
        assert self.exact
        try:
            if way == "rules":
                return map_rules(self.network, self.table, Goal(speedup=strength)).plan
        except PlanError:
            return None
        point = self.exact.within(self.exact.dense.seconds / strength)
        return None if point is None else self.exact.mapped(point).plan

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Percent right of the half of the test photos that chooses, and of the half that reports."""
        (pixels, labels), half = self.test, len(self.test[0]) // 2
        return {"chooses": accuracy(model, pixels[:half], labels[:half]),
                "reports": accuracy(model, pixels[half:], labels[half:])}

    def prune(self, plan: Plan, file: Path) -> dict[str, float]:
        """Prune and recover a copy, write it as ONNX and compiled; its facts."""
        model, options = copy.deepcopy(self.model), self.options
        found = prune_oneshot_(model, plan, self.photos)
        if options.epochs:
            pruner = Pruner(model, plan, example=self.photos[0][:1])
            pruner.take(found.masks)
            loader = ImageBatches(self.pixels, self.labels, normalise, batch=128, pad=4)
            fine_tune(pruner, loader, teacher=frozen_copy(self.model), checkpoint=file.with_suffix(".checkpoint"),
                      recipe=Recipe(epochs=options.epochs, lr=options.lr, bfloat16=True))
            pruner.finalize_()
        export_module(model, SHAPE, file)
        bp.compile(file).save(file.with_suffix(".bp"))
        return {"rate": found.report.rate, **self.scores(model)}


def measure(task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the milliseconds of all of them from one interleaved run."""
    files = [task.options.out / row["file"] for row in rows]
    entries = [Entry(file.stem, OURS, file.with_suffix(".bp"), file) for file in files]
    engines = bench_entries("headline", entries, threads=1, seconds=task.options.seconds).engines
    return [row | {"ms": engines[file.stem].median_ms} for row, file in zip(rows, files, strict=True)]


def table(rows: Sequence[dict[str, Any]], drop: float) -> str:
    """The fastest network of each way that loses at most ``drop`` points on the half of the photos that chooses."""
    dense = next(row for row in rows if row["way"] == "dense")
    best = {way: min((row for row in rows if row["way"] in (way, "dense")
                      and row["chooses"] >= dense["chooses"] - drop), key=lambda row: row["ms"])
            for way in LADDERS if any(row["way"] == way for row in rows)}
    pattern = best.get("pattern only", dense)
    lines = ["| choice | strength | rate | ms | over dense | over pattern only | chosen at, points | points |",
             "|" + "---|" * 8]
    for way, row in best.items():
        strength = "none: dense is fastest" if row is dense else f"{row['strength']:g}"
        lines.append(f"| {way} | {strength} | {row['rate']:.2f} | {row['ms']:.3f} | {dense['ms'] / row['ms']:.2f} "
                     f"| {pattern['ms'] / row['ms']:.2f} | {row['chooses'] - dense['chooses']:+.2f} "
                     f"| {row['reports'] - dense['reports']:+.2f} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy over latency, a line for each way."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    dense = next(row for row in rows if row["way"] == "dense")
    axes.axhline(dense["reports"], color="#98a2b3", linewidth=1, linestyle="--", label="dense")
    for way in LADDERS:
        own = sorted((row["ms"], row["reports"]) for row in rows if row["way"] in (way, "dense"))
        if len(own) > 1:
            axes.plot(*zip(*own, strict=True), marker="o", markersize=4, label=way,
                      linewidth=2.4 if way in ("exact", "rules") else 1.4)
    axes.set(xlabel="ms, one thread", ylabel="top-1 of the half that reports, %",
             ylim=(dense["reports"] - 12, dense["reports"] + 1))
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--cifar", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--out", type=Path, default=Path("out/headline"), help="folder for results")
    parser.add_argument("--weights", type=Path, help="folder that train_cifar10.py wrote")
    parser.add_argument("--ways", nargs="+", default=list(LADDERS), choices=list(LADDERS))
    parser.add_argument("--strengths", type=int, help="at most so many strengths of each way, the weakest first")
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=0, help="of training after pruning")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--drop", type=float, default=0.3, help="points that may be lost")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of each network")
    options = parser.parse_args()
    make_folder(options.out)
    torch.set_num_threads(1)
    task = Task(options)
    results = options.out / f"{options.network}-{options.epochs}.json"
    rows: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    known = {(row["way"], row["strength"]) for row in rows}

    def add(way: str, strength: float, file: Path, facts: dict[str, float]) -> None:
        rows.append({"way": way, "strength": strength, "file": file.name, **facts})
        write_text(results, json.dumps(rows, indent=1) + "\n")
        print(rows[-1], flush=True)

    if ("dense", 1.0) not in known:
        file = export_module(copy.deepcopy(task.model), SHAPE, options.out / f"{options.network}-dense.onnx")
        bp.compile(file).save(file.with_suffix(".bp"))
        add("dense", 1.0, file, {"rate": 1.0, **task.scores(task.model)})
    for way in options.ways:
        for strength in LADDERS[way][:options.strengths]:
            if (way, strength) not in known and (plan := task.plan(way, strength)):
                name = f"{options.network}-{options.epochs}-{way}-{strength:g}".replace(" ", "-").replace(":", "-")
                file = options.out / f"{name}.onnx"
                add(way, strength, file, task.prune(plan, file))
    rows = measure(task, rows)
    draw(rows, f"{options.network}, {options.epochs} epochs after pruning", results.with_suffix(".png"))
    print(table(rows, options.drop))


if __name__ == "__main__":
    main()
