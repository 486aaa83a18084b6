"""Which way of pruning keeps most accuracy at the same rate and the same training: minutes, on a small network.

A ResNet-8 on CIFAR-10 shrunk to 16 pixels is trained dense once, then pruned with each method and seed, every run with
the same number of epochs, the same recipe and the same teacher. ``one-shot`` prunes each layer at the plan's rate and
trains for all epochs; ``one-shot, global`` prunes with one threshold for all layers. Test images are looked at once per
run, at its end. Finished runs are read back from ``--out``.

    python benchmarks/methods.py --data cifar-10-batches-py --out runs [--rate 4] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from blockpunch.atomic import make_folder, write_text
from blockpunch.data import cifar10
from blockpunch.plan import Plan
from blockpunch.pruning import Gradual, Pruner, Reweighted, module_layers
from blockpunch.pruning.batches import ImageBatches
from blockpunch.pruning.recipe import Recipe, fast_bfloat16
from blockpunch.pruning.recover import fine_tune
from networks import CifarResNet
from tasks import DEVICE, accuracy, frozen_copy, normalise

SHARE = 0.4  # of the steps in which a method prunes
METHODS = ("one-shot", "one-shot, global", "gradual", "fixed", "reweighted, plan's rates", "reweighted")


def shrunk(data: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 at 16 pixels, each the mean of four."""
    images, labels = cifar10(data, split)
    small = images.reshape(len(images), 3, 16, 2, 16, 2).mean((3, 5))
    return np.round(small).astype(np.uint8), labels


def make_pruner(method: str, model: torch.nn.Module, scheme: str, rate: float, steps: int) -> Pruner:
    """Every method ends at the same rate of all prunable weights; a global one finds each layer's itself."""
    layers = module_layers(model)
    plan = Plan.uniform(layers, scheme, rate)
    whole = sum(layer.weights for layer in layers) / sum(
        layer.weights / plan.layers[layer.name].rate for layer in layers)
    part = max(1, round(SHARE * steps))
    methods: dict[str, Any] = {
        "one-shot": None, "one-shot, global": Reweighted(1, target_rate=whole), "gradual": Gradual(part),
        "fixed": Reweighted(part, target_rate=whole, reweight=False), "reweighted, plan's rates": Reweighted(part),
        "reweighted": Reweighted(part, target_rate=whole)}
    pruner = Pruner(model, plan, method=methods[method], example=torch.zeros(1, 3, 16, 16))
    if method.startswith("one-shot"):
        pruner.apply_()
    return pruner


def dense_network(options: argparse.Namespace, loader: ImageBatches) -> torch.nn.Module:
    """Trained once and kept."""
    torch.manual_seed(0)
    model, path = CifarResNet(1), options.out / f"dense-{options.dense_epochs}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    recipe = Recipe(epochs=options.dense_epochs, lr=0.1, weight_decay=5e-4, bfloat16=fast_bfloat16(DEVICE))
    fine_tune(Pruner(model, Plan.per_layer(module_layers(model), {})), loader, recipe=recipe,
              checkpoint=path.with_suffix(".checkpoint"), progress=show("dense"))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model


def show(text: str) -> Any:
    """A progress callback that prints now and then."""
    def progress(status: Any) -> None:
        if status.step % 400 == 0:
            print(f"  {text}: step {status.step}/{status.steps} loss {status.loss:.3f} {status.seconds:.0f} s",
                  flush=True)
    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--scheme", default="block-punched:8x4")
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=4, help="of each pruned run")
    parser.add_argument("--dense-epochs", type=int, default=15)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    make_folder(options.out)
    torch.set_num_threads(1)
    train, test = shrunk(options.data, "train"), shrunk(options.data, "test")
    loader = ImageBatches(*train, normalise, pad=2)
    dense = dense_network(options, loader)
    teacher, before = frozen_copy(dense), accuracy(dense, *test, normalise)
    print(f"dense: {before:.2f} %", flush=True)
    print("| method | rate | pruned - dense, points: mean | seeds |\n|---|---|---|---|", flush=True)
    for method in options.methods:
        changes, rate = [], 0.0
        for seed in options.seeds:
            key = [options.scheme, options.rate, options.epochs, options.dense_epochs, options.lr, method, seed]
            path = options.out / ("-".join(str(item).replace(" ", "").replace(":", "") for item in key) + ".json")
            if not path.exists():
                model = copy.deepcopy(dense)
                pruner = make_pruner(method, model, options.scheme, options.rate, options.epochs * len(loader))
                fine_tune(pruner, loader, teacher=teacher, progress=show(f"{method} {seed}"),
                          recipe=Recipe(epochs=options.epochs, lr=options.lr, seed=seed,
                                        bfloat16=fast_bfloat16(DEVICE)))
                facts = {"rate": pruner.finalize_().rate, "accuracy": accuracy(model, *test, normalise)}
                write_text(path, json.dumps(facts) + "\n")
            facts = json.loads(path.read_text())
            changes.append(facts["accuracy"] - before)
            rate = facts["rate"]
        print(f"| {method} | {rate:.2f} | {statistics.mean(changes):+.2f} "
              f"| {', '.join(f'{change:+.2f}' for change in changes)} |", flush=True)


if __name__ == "__main__":
    main()
