"""Train the dense CIFAR-10 networks that have no shared weights: VGG-16-BN, ResNet-18 and MobileNetV2.

SGD with Nesterov momentum along a cosine, crops and mirrored images, bfloat16, on a GPU where there is one; on a CPU
ask for fewer epochs. A run that was stopped goes on with the same command.

    python benchmarks/train_cifar10.py resnet18-32 --data cifar-10-batches-py --out weights [--epochs 200]
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

from blockpunch.atomic import make_folder, write_atomic, write_text
from blockpunch.data import cifar10
from blockpunch.plan import Plan
from blockpunch.pruning import Pruner, module_layers
from blockpunch.pruning.recover import Recipe, Status, fine_tune
from cifar import accuracy, training_batches
from networks import NETWORKS, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[name for name in NETWORKS if name.endswith("-32")])
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoint")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="train on the first so many images only, to try the script")
    options = parser.parse_args()
    make_folder(options.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(options.network, options.seed).to(device)
    nothing = Plan.per_layer(module_layers(model), {})  # every layer dense: plain training, with the same resume
    recipe = Recipe(epochs=options.epochs, lr=options.lr, weight_decay=5e-4, warmup_steps=500, bfloat16=True,
                    seed=options.seed)
    start = time.time()

    def progress(status: Status) -> None:
        if status.step % 100 == 0 and status.score is None:
            print(f"epoch {status.epoch} step {status.step}/{status.steps} loss {status.loss:.3f} "
                  f"{status.seconds:.0f} s", flush=True)

    result = fine_tune(Pruner(model, nothing), training_batches(options.data, options.batch, options.images),
                       recipe=recipe, checkpoint=options.out / f"{options.network}.checkpoint", progress=progress)
    facts = {"network": options.network, "epochs": options.epochs, "batch": options.batch, "lr": options.lr,
             "seed": options.seed, "test_accuracy": accuracy(model, *cifar10(options.data, "test")),
             "seconds": round(result.seconds), "device": device, "date": time.strftime("%Y-%m-%d", time.gmtime(start))}
    state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(options.out / f"{options.network}.safetensors", save(state))
    write_text(options.out / f"{options.network}.json", json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
