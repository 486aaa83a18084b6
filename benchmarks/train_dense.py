"""Train the dense networks that have no shared weights: VGG-16-BN, ResNet-18, MobileNetV2; EfficientNet-Lite0's head.

SGD with Nesterov momentum (Lite0: Adam) along a cosine, crops and mirrored photos, bfloat16, on a GPU where there is
one; on a CPU ask for fewer epochs. Weights are kept in half precision, and judged as they are kept. A run that was
stopped goes on with the same command.

    python benchmarks/train_dense.py resnet18-32 --data cifar-10-batches-py --out weights [--epochs 200]
    python benchmarks/train_dense.py lite0-imagenette --data imagenette --out weights --epochs 1 --lr 2e-5 --batch 32
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from safetensors.torch import save
from torch.nn import functional

from blockpunch.atomic import make_folder, write_atomic, write_text
from blockpunch.plan import Plan
from blockpunch.pruning import Pruner, module_layers
from blockpunch.pruning.recover import Status, fine_tune
from networks import NETWORKS, build
from tasks import DEVICE, load_task


def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with a little doubt about the labels."""
    return functional.cross_entropy(outputs, labels, label_smoothing=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[name for name, network in NETWORKS.items() if not network.trained])
    parser.add_argument("--data", type=Path, required=True, help="cifar-10-batches-py, or a folder with train and val")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoint")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="train on the first so many images only, to try the script")
    options = parser.parse_args()
    make_folder(options.out)
    task, start = load_task(options.network, options.data), time.time()
    model = build(options.network, options.seed).to(DEVICE)
    nothing = Plan.per_layer(module_layers(model), {})  # every layer dense: plain training, with the same resume
    loader = task.batches(options.batch, options.images)
    recipe = task.recipe(options.epochs, options.lr, weight_decay=options.weight_decay,
                         warmup_steps=min(500, options.epochs * len(loader) // 4), seed=options.seed)

    def progress(status: Status) -> None:
        if status.step % 100 == 0 and status.score is None:
            print(f"epoch {status.epoch} step {status.step}/{status.steps} loss {status.loss:.3f} "
                  f"{status.seconds:.0f} s", flush=True)

    result = fine_tune(Pruner(model, nothing), loader, loss=loss, recipe=recipe,
                       checkpoint=options.out / f"{options.network}.checkpoint", progress=progress)
    state = {name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
             for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    facts = {"network": options.network, "epochs": options.epochs, "batch": options.batch, "lr": options.lr,
             "seed": options.seed, "test_accuracy": task.accuracy(model), "seconds": round(result.seconds),
             "device": DEVICE, "date": time.strftime("%Y-%m-%d", time.gmtime(start))}
    write_atomic(options.out / f"{options.network}.safetensors", save(state))
    write_text(options.out / f"{options.network}.json", json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
