"""Accuracy after pruning on CIFAR-10: every row is pruned, retrained, compiled and timed; prints a markdown table.

Rows differ in network, regularity, rate and method; every row is run with each seed. Nothing is selected on the test
images: a row is judged once, at the end of its run. A run that was stopped goes on with the same command; finished runs
are read back from the folder ``--out``.

    python benchmarks/accuracy.py --data cifar-10-batches-py --out runs [--rows 'resnet20 mixed*'] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
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

from blockpunch.atomic import make_folder, write_text
from blockpunch.data import cifar10
from blockpunch.graph import load_graph
from blockpunch.graph.summary import summarize
from blockpunch.plan import Layer, Plan
from blockpunch.pruning import Gradual, Pruner, Reweighted, module_layers, prune_oneshot_, rated
from blockpunch.pruning.recover import Recipe, Status, fine_tune
from cifar import accuracy, calibration_batches, dense_network, frozen_copy, training_batches
from networks import export_module
from timing import beside_peers

SHARE = 0.4  # of the steps that a method prunes in; the rest is masked retraining
MIXED = {"layer1.*": ("pattern", 2.25), "layer2.*": ("block-punched:4x1", 2.5), "layer3.*": ("block-punched:8x4", 2.5)}


@dataclass(frozen=True)
class Row:
    """One line of the table. ``bar``: the loss of accuracy in points that is allowed; None: a comparison."""

    network: str
    plan: str
    rate: float
    method: str = "reweighted"
    bar: float | None = None
    epochs: int = 20
    lr: float = 0.02

    @property
    def name(self) -> str:
        """``resnet20 mixed 2.5 reweighted``."""
        return f"{self.network} {self.plan} {self.rate:g} {self.method}"

    def file(self, seed: int, kind: str) -> str:
        """Name of a run's file."""
        return f"{re.sub('[^a-z0-9]+', '-', self.name)}-{seed}.{kind}"


ROWS = [
    Row("resnet20", "mixed", 2.5, bar=0.5), Row("resnet20", "mixed", 2.5, "second-order", bar=0.5, lr=0.03),
    Row("resnet20", "mixed", 2.5, "one-shot"), Row("resnet20", "mixed", 2.5, "fixed"),
    Row("resnet20", "mixed", 2.5, "gradual"),
    Row("resnet56", "block-punched:8x4", 3, bar=0.3), Row("resnet56", "block-punched:4x1", 5, bar=0.5),
    Row("resnet56", "block-punched:8x4", 3, "second-order", bar=0.3, epochs=12, lr=0.03),
    Row("resnet56", "block-punched:4x1", 5, "second-order", bar=0.5, epochs=12, lr=0.03),
    Row("vgg16-bn-32", "block-punched:8x4", 12, bar=0.2), Row("resnet18-32", "block-punched:8x4", 10, bar=0.3),
    Row("mobilenet-v2-32", "block-punched:8x4", 5, bar=0.5),
    *(Row("resnet56", plan, rate, "gradual") for rate in (2.0, 4.0, 8.0)
      for plan in ("unstructured", "block-punched:4x1", "block-punched:8x4", "block-punched:16x16", "filter")),
]


def make_plan(row: Row, layers: list[Layer]) -> Plan:
    """Every layer but those that are dense by default; ``mixed`` has a regularity of its own in each stage."""
    if row.plan == "mixed":
        return Plan.per_layer(layers, MIXED)
    return Plan.uniform(layers, row.plan, row.rate, only=["conv1x1"] if row.network.startswith("mobilenet") else ())


def make_pruner(row: Row, model: torch.nn.Module, plan: Plan, steps: int, data: Path) -> Pruner:
    """A pruner whose method is over after SHARE of the steps; ``second-order`` prunes at once, rates spread."""
    if row.method == "second-order":
        images = [batch.to(next(model.parameters()).device) for batch in calibration_batches(data)]
        plan = rated(model, plan, images, row.rate)
        masks = prune_oneshot_(model, plan, images).masks
        pruner = Pruner(model, plan, example=images[0][:1])
        pruner.take(masks)
        return pruner
    part = max(1, round(SHARE * steps))
    methods: dict[str, Any] = {
        "reweighted": Reweighted(part, target_rate=row.rate),
        "fixed": Reweighted(part, target_rate=row.rate, reweight=False),
        "gradual": Gradual(part), "one-shot": None}
    return Pruner(model, plan, method=methods[row.method], example=torch.zeros(1, 3, 32, 32))


def imitated(model: torch.nn.Module) -> list[str]:
    """The blocks whose outputs are compared with the dense network's: three of each stage of a ResNet."""
    stages = [name for name, _ in model.named_children() if name.startswith("layer")]
    blocks = [[f"{stage}.{index}" for index in range(len(model.get_submodule(stage)))] for stage in stages]
    return [name for names in blocks for name in names[len(names) // 3 - 1 if len(names) > 2 else 0::max(
        1, len(names) // 3)]]


def run(row: Row, seed: int, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Prune, retrain, export, and judge once on the test images."""
    dense = dense_network(row.network, options.weights)
    teacher, model = frozen_copy(dense), copy.deepcopy(dense)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher, model = teacher.to(device), model.to(device)
    loader = training_batches(options.data, images=options.images)
    epochs = options.epochs or row.epochs
    pruner = make_pruner(row, model, make_plan(row, module_layers(model)), epochs * len(loader), options.data)
    last = [0.0]

    def progress(status: Status) -> None:
        if time.monotonic() - last[0] > 60 and status.score is None:
            last[0] = time.monotonic()
            say(f"{row.name} seed {seed}: step {status.step}/{status.steps} loss {status.loss:.3f} "
                f"{status.seconds:.0f} s")

    result = fine_tune(pruner, loader, teacher=teacher, features=imitated(model), feature_weight=1,
                       recipe=Recipe(epochs=epochs, lr=row.lr, minutes=options.minutes, bfloat16=True, seed=seed),
                       checkpoint=options.out / row.file(seed, "checkpoint"), progress=progress)
    report = pruner.finalize_()
    model, dense = model.cpu().to(memory_format=torch.contiguous_format), dense.cpu()
    test = cifar10(options.data, "test")
    onnx = export_module(model, (1, 3, 32, 32), options.out / row.file(seed, "onnx"))
    layers = summarize(load_graph(onnx))
    macs, kept = sum(item.macs for item in layers), sum(item.kept_macs for item in layers)
    return {**asdict(row), "epochs": round(result.steps / len(loader), 1), "seed": seed,
            "dense": accuracy(dense, *test), "pruned": accuracy(model, *test),
            "counted_rate": report.rate, "macs_rate": macs / kept,
            "seconds": round(result.seconds), "device": device, "onnx": onnx.name,
            "images": len(loader) * loader.batch,
            "rates": {count.name: round(count.rate, 2) for count in report.layers}}


def time_it(facts: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the compiled network and of the fastest dense peer, in one run on one thread."""
    pruned, dense = options.out / facts["onnx"], options.out / f"{facts['network']}-dense.onnx"
    if not dense.exists():
        export_module(dense_network(facts["network"], options.weights), (1, 3, 32, 32), dense)
    return beside_peers(pruned, dense, options.engines, seconds=options.seconds, tune=options.tune)


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
        lines.append(f"| {first['network']} | {first['plan']} | {statistics.mean(i['counted_rate'] for i in own):.2f} "
                     f"| {statistics.mean(i['macs_rate'] for i in own):.2f} | {first['method']} | {first['epochs']} "
                     f"| {', '.join(str(i['seed']) for i in own)} | {first['dense']:.2f} "
                     f"| {statistics.mean(changes):+.2f}{spread} | {'' if first['bar'] is None else -first['bar']} "
                     f"| {timed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and checkpoints")
    parser.add_argument("--weights", type=Path, help="folder that train_cifar10.py wrote")
    parser.add_argument("--rows", default="*", help="names of rows, as a glob")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="in place of each row's own")
    parser.add_argument("--minutes", type=float, help="of retraining, where that is less than the epochs take")
    parser.add_argument("--images", type=int, help="train on the first so many images only")
    parser.add_argument("--threads", type=int, default=1, help="computing threads of the training")
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "openvino"], help="none: no timing")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time for each engine")
    parser.add_argument("--tune", type=float, default=0.0, help="seconds of tuning for each network")
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
                facts |= time_it(facts, options)
            write_text(kept, json.dumps(facts, indent=1) + "\n")
            print(f"{row.name} seed {seed}: {facts['dense']:.2f} -> {facts['pruned']:.2f} %, rate "
                  f"{facts['counted_rate']:.2f}, {facts['seconds']} s", flush=True)
            results.append(facts)
    print(table(results))


if __name__ == "__main__":
    main()
