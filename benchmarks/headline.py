"""The paper's comparison in one engine: mapped networks beside one scheme everywhere, at equal accuracy.

    python benchmarks/headline.py mobilenet-v2-32 --data cifar-10-batches-py --weights weights \
        --table table.jsonl [--epochs 12] [--rows 'exact@2.5' 'pattern only@*'] [--drop 0.3]

Every way of choosing is tried at several strengths. Each network is pruned to its plan in one shot on the same photos,
trained for the same number of epochs (none by default) with the dense network as teacher, on a GPU where there is one;
then all are compiled and timed in one interleaved run (``--no-time`` leaves that to a later run on the machine that the
table is of). The fastest
network of each way that loses at most ``--drop`` points on one half of the test photos is its result; the other half,
which chooses nothing, says what became of it. (Training photos cannot choose: the dense network knows them by heart.)
"Pattern only" is PatDNN's way: patterns and connectivity on 3x3 layers, whole filters elsewhere. "torch-pruning" is
what a user would do instead: channels removed by that library (``pip install torch-pruning``), the same training, run
by OpenVINO. Each row is a file of its own in ``--out``, so that several processes may share them; finished rows are not
computed again, and a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch import nn

import blockpunch as bp
from blockpunch.atomic import make_folder, write_text
from blockpunch.errors import PlanError
from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.exact import Exact
from blockpunch.mapping.rules import map_rules
from blockpunch.measure.bench import OURS, Entry, bench_entries
from blockpunch.plan import Plan
from blockpunch.pruning import Pruner, module_layers, prune_oneshot_
from blockpunch.pruning.layer_errors import layer_errors
from blockpunch.pruning.recover import fine_tune
from blockpunch.target import Target
from networks import CifarBlock, CifarResNet, export_module
from tasks import DEVICE, dense_network, frozen_copy, load_task

RATES, SPEEDUPS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0), (1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
LADDERS: dict[str, Sequence[float]] = {
    "pattern only": (1.25, 1.5, 2.0, 2.25, 3.0, 3.6, 5.0, 8.0, 12.0), "filter": RATES, "unstructured": RATES,
    "block-punched:8x4": RATES, "rules": SPEEDUPS, "exact": SPEEDUPS, "torch-pruning": RATES}
PATTERN = 2.25  # the least rate of a pattern: 4 of 9 weights stay
DENSE = ("dense", 1.0)
Row = dict[str, Any]


class Contest:
    """A dense network, the photos, and what plans are chosen from."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model = options, dense_network(options.network, options.weights)
        self.task, self.layers = load_task(options.network, options.data), module_layers(self.model)

    def exact(self) -> tuple[Network, LatencyTable, Exact]:
        """The solver, with the table's latencies and the layers' errors, which are kept."""
        header = json.loads(self.options.table.read_text().partition("\n")[0])
        target = Target.named(header["target"])
        network = Network(optimize(load_graph(self.model, torch.zeros(self.task.shape))), target)
        table = LatencyTable(self.options.table, target, model=self.options.network, cpu=header["cpu"])
        store = self.options.out / f"{self.options.network}.errors.json"
        photos = [part.cpu() for part in self.task.calibration(self.options.photos)]
        errors = layer_errors(self.model, photos, contenders(network, table), store=store)
        return network, table, Exact.solve(network, table, errors.costs, errors.alive)

    def plan(self, way: str, strength: float) -> Plan | None:
        """Of a way of choosing; None where it cannot go so far."""
        if way == "pattern only":
            plan = Plan.uniform(self.layers, "filter", strength)
            threes = [layer.name for layer in self.layers if layer.shape[2:] == (3, 3) and layer.name in plan.pruned()]
            if threes:
                patterns = Plan.uniform(self.layers, "pattern", max(strength, PATTERN), only=threes)
                plan.layers.update({name: patterns.layers[name] for name in threes})
            return plan
        if way not in ("rules", "exact"):
            return Plan.uniform(self.layers, way, strength)
        network, table, exact = self.exact()
        try:
            if way == "rules":
                return map_rules(network, table, Goal(speedup=strength)).plan
        except PlanError:
            return None
        point = exact.within(exact.dense.seconds / strength)
        return None if point is None else exact.mapped(point).plan

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Percent right of the half of the test photos that chooses, and of the half that reports."""
        return {"chooses": self.task.accuracy(model, slice(0, None, 2)),
                "reports": self.task.accuracy(model, slice(1, None, 2))}

    def compute(self, way: str, strength: float, name: str) -> Row | None:
        """Choose, prune and train a network, and keep its weights; None where there is none so strong."""
        if (way, strength) == DENSE:
            export_module(frozen_copy(self.model), self.task.shape, self.options.out / f"{name}.onnx")
            return {"rate": 1.0, **self.scores(self.model.to(DEVICE))}
        model = self.pruned(way, strength, name)
        if model is None:
            return None
        rate = sum(layer.weights for layer in self.layers) / sum(
            int(model.get_submodule(layer.name).weight.count_nonzero()) for layer in self.layers)
        export_module(model.cpu().to(memory_format=torch.contiguous_format), self.task.shape,
                      self.options.out / f"{name}.onnx")
        return {"rate": rate, **self.scores(model.to(DEVICE))}

    def pruned(self, way: str, strength: float, name: str) -> nn.Module | None:
        """A copy, pruned and trained; None where the way does not go so far."""
        model = frozen_copy(self.model).to(DEVICE).requires_grad_(True)
        if way == "torch-pruning":
            shrink_channels(model, self.task.shape, strength)
            return self.trained(model, Pruner(model, Plan.per_layer(module_layers(model), {})), name)
        plan = self.plan(way, strength)
        if plan is None:
            return None
        photos = self.task.calibration(self.options.photos)
        masks = prune_oneshot_(model, plan, photos).masks
        pruner = Pruner(model, plan, example=photos[0][:1])
        pruner.take(masks)
        return self.trained(model, pruner, name)

    def trained(self, model: nn.Module, pruner: Pruner, name: str) -> nn.Module:
        """The pruned model after the training that all get; a training that was stopped goes on."""
        options = self.options
        if options.epochs:
            fine_tune(pruner, self.task.batches(options.batch, options.images),
                      recipe=self.task.recipe(options.epochs, options.lr), teacher=frozen_copy(self.model).to(DEVICE),
                      checkpoint=options.out / f"{name}.checkpoint")
        pruner.finalize_()
        return model


def shrink_channels(model: nn.Module, shape: tuple[int, ...], rate: float) -> None:
    """Remove channels of ``model`` in place, evenly by magnitude, until its multiply-adds are ``1 / rate`` of all."""
    import torch_pruning

    kept: list[nn.Module] = [[module for module in model.modules() if isinstance(module, nn.Linear)][-1]]
    if isinstance(model, CifarResNet):  # shortcuts without weights: the library cannot follow them
        kept += [model.conv1, *(block.conv2 for block in model.modules() if isinstance(block, CifarBlock))]
    example = torch.zeros(shape, device=DEVICE)
    pruner = torch_pruning.pruner.BasePruner(
        model, example, importance=torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=0.9,
        iterative_steps=90, ignored_layers=kept, round_to=4)
    whole = torch_pruning.utils.count_ops_and_params(model, example)[0]
    while torch_pruning.utils.count_ops_and_params(model, example)[0] > whole / rate:
        pruner.step()


def measure(options: argparse.Namespace, rows: Sequence[Row]) -> list[Row]:
    """The rows, with the milliseconds of all of them from one interleaved run."""
    entries = []
    for row in rows:
        file = options.out / f"{row['name']}.onnx"
        if row["way"] == "torch-pruning":
            entries.append(Entry(row["name"], "openvino", file))
        else:
            bp.compile(file).save(file.with_suffix(".bp"))
            entries.append(Entry(row["name"], OURS, file.with_suffix(".bp"), file))
    engines = bench_entries("headline", entries, threads=1, seconds=options.seconds).engines
    return [row | {"ms": engines[row["name"]].median_ms} for row in rows]


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
    parser.add_argument("--data", type=Path, required=True, help="cifar-10-batches-py, or a folder with train and val")
    parser.add_argument("--table", type=Path, help="latency table that knows the network, for rules and exact")
    parser.add_argument("--out", type=Path, default=Path("out/headline"), help="folder for results")
    parser.add_argument("--weights", type=Path, help="folder that train_dense.py wrote")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="WAY@STRENGTH", help="globs; default: all")
    parser.add_argument("--photos", type=int, default=500, help="that layer errors are computed on")
    parser.add_argument("--epochs", type=int, default=0, help="of training after pruning")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, help="train on the first so many images only, to try the script")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--drop", type=float, default=0.3, help="points that may be lost")
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time of each network")
    parser.add_argument("--no-time", action="store_true", help="train what is missing, and no more")
    parser.add_argument("--prepare", action="store_true", help="compute the layer errors, which all rows share, alone")
    parser.add_argument("--threads", type=int, default=1, help="computing threads")
    options = parser.parse_args()
    make_folder(options.out)
    torch.set_num_threads(options.threads)
    contest: Contest | None = None
    if options.prepare:
        Contest(options).exact()
        return
    rows: list[Row] = []
    for way, strength in [DENSE, *((way, strength) for way, ladder in LADDERS.items() for strength in ladder)]:
        name = re.sub("[^a-z0-9.]+", "-", f"{options.network}-{options.epochs}-{way}-{strength:g}")
        kept = options.out / f"{name}.json"
        wanted = any(fnmatch.fnmatchcase(f"{way}@{strength:g}", row) for row in options.rows)
        if wanted and not kept.exists():
            contest = contest or Contest(options)
            facts = contest.compute(way, strength, name)
            if facts is not None:
                write_text(kept, json.dumps({"way": way, "strength": strength, "name": name, **facts}) + "\n")
        if kept.exists():
            rows.append(json.loads(kept.read_text()))
            print(rows[-1], flush=True)
    if options.no_time:
        return
    rows = measure(options, rows)
    results = options.out / f"{options.network}-{options.epochs}.timed.json"
    write_text(results, json.dumps(rows, indent=1) + "\n")
    draw(rows, f"{options.network}, {options.epochs} epochs after pruning", results.with_suffix(".png"))
    print(table(rows, options.drop))


if __name__ == "__main__":
    main()
