"""Accuracy after pruning and retraining: every row is pruned, retrained, compiled and timed; prints a markdown table.

Rows differ in network, regularity, rate and method; every row is run with each seed, on a GPU where there is one.
Nothing is selected on the test images: a row is judged once, at the end of its run. A run that was stopped goes on with
the same command; finished runs are read back from the folder ``--out``, whatever machine they were trained on
(``--engines`` without a name times nothing), so that several processes may share the rows.

    python benchmarks/accuracy.py --data cifar-10-batches-py --out runs [--rows 'resnet20 mixed*'] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from safetensors.torch import load_file, save

from blockpunch.atomic import make_folder, write_atomic, write_text
from blockpunch.graph import load_graph
from blockpunch.graph.summary import summarize
from blockpunch.plan import Layer, Plan
from blockpunch.pruning import Gradual, Pruner, Reweighted, module_layers, prune_oneshot_, rated
from blockpunch.pruning.recover import Status, fine_tune
from networks import NETWORKS, build, export_module
from tasks import DEVICE, Task, dense_network, frozen_copy, load_task
from timing import beside_peers

SHARE = 0.4  # of the steps that a method prunes in; the rest is masked retraining
POINTWISE = ("mobilenet-v2-32", "lite0-imagenette")
"""Networks of which the 1x1 layers alone are pruned."""
MIXED = {"layer1.*": ("pattern", 2.25), "layer2.*": ("block-punched:4x1", 2.5), "layer3.*": ("block-punched:8x4", 2.5)}


@dataclass(frozen=True)
class Row:
    """One line of the table. ``bar``: the loss of accuracy in points that is allowed; None: a comparison."""

    network: str
    plan: str
    rate: float
    method: str = "reweighted"
    bar: float | None = None
    epochs: int = 40
    lr: float = 0.05
    batch: int = 256

    @property
    def name(self) -> str:
        """``resnet20 mixed 2.5 reweighted``."""
        return f"{self.network} {self.plan} {self.rate:g} {self.method}"

    def file(self, seed: int, kind: str) -> str:
        """Name of a run's file."""
        return f"{re.sub('[^a-z0-9]+', '-', self.name)}-{seed}.{kind}"


ROWS = [
    Row("resnet56", "block-punched:8x4", 3, bar=0.3, epochs=60),
    Row("resnet56", "block-punched:4x1", 5, bar=0.5, epochs=60),
    Row("resnet20", "mixed", 2.5, bar=0.5),
    Row("vgg16-bn-32", "block-punched:8x4", 12, bar=0.2),
    Row("resnet18-32", "block-punched:8x4", 10, bar=0.3, epochs=30),
    Row("mobilenet-v2-32", "block-punched:8x4", 5, bar=0.5),
    Row("lite0-imagenette", "block-punched:8x4", 5, bar=0.5, lr=2e-4, batch=32),
    Row("lite0-imagenette", "block-punched:8x4", 5, "second-order", bar=0.5, lr=2e-4, batch=32, epochs=4),
    *(Row("resnet20", "block-punched:8x4", 4, method, epochs=12)
      for method in ("one-shot", "fixed", "reweighted", "gradual")),
    *(Row("resnet56", plan, rate, "gradual", epochs=12) for rate in (2.0, 4.0, 8.0)
      for plan in ("unstructured", "block-punched:4x1", "block-punched:8x4", "block-punched:16x16", "filter")),
]


def make_plan(row: Row, layers: list[Layer]) -> Plan:
    """Every layer but those that are dense by default; ``mixed`` has a regularity of its own in each stage."""
    if row.plan == "mixed":
        return Plan.per_layer(layers, MIXED)
    return Plan.uniform(layers, row.plan, row.rate, only=["conv1x1"] if row.network in POINTWISE else ())


def make_pruner(row: Row, model: torch.nn.Module, plan: Plan, steps: int, task: Task) -> Pruner:
    """A pruner whose method is over after SHARE of the steps; ``second-order`` prunes at once, rates spread."""
    example = torch.zeros(task.shape, device=DEVICE)
    if row.method == "second-order":
        images = task.calibration(500)
        plan = rated(model, plan, images, row.rate)
        masks = prune_oneshot_(model, plan, images).masks
        pruner = Pruner(model, plan, example=example)
        pruner.take(masks)
        return pruner
    part = max(1, round(SHARE * steps))
    methods: dict[str, Any] = {
        "reweighted": Reweighted(part, target_rate=row.rate),
        "fixed": Reweighted(part, target_rate=row.rate, reweight=False),
        "gradual": Gradual(part), "one-shot": None}
    return Pruner(model, plan, method=methods[row.method], example=example)


def run(row: Row, seed: int, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Prune, retrain, judge once on the test images, and keep the weights."""
    model = dense_network(row.network, options.weights).to(DEVICE)
    teacher, task = frozen_copy(model), load_task(row.network, options.data)
    loader, epochs = task.batches(row.batch, options.images), options.epochs or row.epochs
    pruner = make_pruner(row, model, make_plan(row, module_layers(model)), epochs * len(loader), task)
    last = [0.0]

    def progress(status: Status) -> None:
        if time.monotonic() - last[0] > options.every and status.score is None:
            last[0] = time.monotonic()
            say(f"{row.name} seed {seed}: step {status.step}/{status.steps} loss {status.loss:.3f} "
                f"{status.seconds:.0f} s")

    result = fine_tune(pruner, loader, teacher=teacher,
                       recipe=task.recipe(epochs, row.lr, minutes=options.minutes, seed=seed,
                                          compile=options.compile),
                       checkpoint=options.out / row.file(seed, "checkpoint"), progress=progress)
    report = pruner.finalize_()
    write_atomic(options.out / row.file(seed, "safetensors"),
                 save({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}))
    return {**asdict(row), "epochs": round(result.steps / len(loader), 1), "seed": seed,
            "dense": task.accuracy(teacher), "pruned": task.accuracy(model), "counted_rate": report.rate,
            "seconds": round(result.seconds), "device": DEVICE, "images": len(loader) * loader.batch,
            "rates": {count.name: round(count.rate, 2) for count in report.layers}}


def time_it(facts: dict[str, Any], weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the compiled network and of the fastest dense peer, in one run on one thread."""
    name, shape = facts["network"], NETWORKS[facts["network"]].shape
    dense, model = options.out / f"{name}-dense.onnx", build(name)
    if not dense.exists():
        export_module(model, shape, dense)
    model.load_state_dict(load_file(weights))
    pruned = export_module(model, shape, weights.with_suffix(".onnx"))
    layers = summarize(load_graph(pruned))
    macs, kept = sum(item.macs for item in layers), sum(item.kept_macs for item in layers)
    return {"macs_rate": macs / kept,
            **beside_peers(pruned, dense, options.engines, seconds=options.seconds, tune=options.tune)}


def table(results: list[dict[str, Any]]) -> str:
    """One line per row: mean and spread of the seeds."""
    lines = ["| network | plan | rate | MACs rate | method | epochs | seeds | dense % | pruned - dense, points | bar "
             "| ms | best dense peer | speed-up |", "|" + "---|" * 13]
    names = dict.fromkeys(Row(*(item[key] for key in ("network", "plan", "rate", "method"))).name for item in results)
    for name in names:
        own = [item for item in results
               if f"{item['network']} {item['plan']} {item['rate']:g} {item['method']}" == name]
        changes = [item["pruned"] - item["dense"] for item in own]
        first, spread = own[0], f" (from {min(changes):+.2f} to {max(changes):+.2f})" if len(own) > 1 else ""
        ms = statistics.median(item["ms"] for item in own) if "ms" in first else None
        timed = (f"{ms:.3f} | {first['peer']} {first['peer_ms']:.3f} | {first['peer_ms'] / ms:.2f}" if ms
                 else "| | ").strip()
        rate, macs = (statistics.mean(i.get(key, math.nan) for i in own) for key in ("counted_rate", "macs_rate"))
        lines.append(f"| {first['network']} | {first['plan']} | {rate:.2f} | {macs:.2f} "
                     f"| {first['method']} | {first['epochs']} "
                     f"| {', '.join(str(i['seed']) for i in own)} | {first['dense']:.2f} "
                     f"| {statistics.mean(changes):+.2f}{spread} | {'' if first['bar'] is None else -first['bar']} "
                     f"| {timed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="cifar-10-batches-py, or a folder with train and val")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--weights", type=Path, help="folder that train_dense.py wrote")
    parser.add_argument("--rows", default="*", help="names of rows, as a glob")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="in place of each row's own")
    parser.add_argument("--minutes", type=float, help="of retraining, where that is less than the epochs take")
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--threads", type=int, default=1, help="computing threads of the training")
    parser.add_argument("--compile", action="store_true", help="train networks that torch.compile compiled")
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "openvino"], help="none: no timing")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time for each engine")
    parser.add_argument("--tune", type=float, default=0.0, help="seconds of tuning for each network")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between lines of progress")
    options = parser.parse_args()
    make_folder(options.out)
    torch.set_num_threads(options.threads)
    results = []
    for row in ROWS:
        if not fnmatch.fnmatchcase(row.name, options.rows):
            continue
        for seed in options.seeds:
            kept = options.out / row.file(seed, "json")
            facts = json.loads(kept.read_text()) if kept.exists() else None
            if facts is None:
                try:
                    facts = run(row, seed, options, lambda text: print(text, flush=True))
                except FileNotFoundError as error:
                    print(f"{row.name}: left out, {error}", flush=True)
                    break
            if options.engines and "ms" not in facts:
                facts |= time_it(facts, kept.with_suffix(".safetensors"), options)
            write_text(kept, json.dumps(facts, indent=1) + "\n")
            print(f"{row.name} seed {seed}: {facts['dense']:.2f} -> {facts['pruned']:.2f} %, rate "
                  f"{facts['counted_rate']:.2f}, {facts['seconds']} s", flush=True)
            results.append(facts)
    print(table(results))


if __name__ == "__main__":
    main()
