"""ResNet-56 on CIFAR-10: keep a third of the weights, fine-tune with labels, compile, compare accuracy and speed.

The weights are resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10. A run that was stopped goes on.
"""
import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, pad, relu

import blockpunch as bp
from blockpunch.data import cifar10
from blockpunch.measure.bench import bench
from blockpunch.pruning import module_layers
from blockpunch.pruning.batches import ImageBatches
from blockpunch.pruning.recover import Recipe, fine_tune


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.stride > 1 else x))


class ResNet(nn.Module):
    def __init__(self, blocks=9):
        super().__init__()
        self.conv1, self.bn1, self.linear = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Linear(64, 10)
        for stage, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            layers = [Block(outputs if i else inputs, outputs, 1 if i or stage == 1 else 2) for i in range(blocks)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.linear(avg_pool2d(x, 8).flatten(1))


def normalise(images):
    mean, std = torch.tensor([.485, .456, .406]).view(3, 1, 1), torch.tensor([.229, .224, .225]).view(3, 1, 1)
    return (torch.as_tensor(images).float() / 255 - mean) / std


@torch.no_grad()
def accuracy(run, images, labels, size):
    guesses = [np.argmax(np.asarray(run(normalise(images[i:i + size]))), axis=1) for i in range(0, len(images), size)]
    return 100 * float(np.mean(np.concatenate(guesses) == labels))


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-py")
parser.add_argument("--weights", type=Path, required=True, help="resnet56-4bfd9763.th")
parser.add_argument("--epochs", type=int, default=8)
options = parser.parse_args()
dense, example, test = ResNet().eval(), torch.zeros(1, 3, 32, 32), cifar10(options.data, "test")
saved = torch.load(options.weights, map_location="cpu", weights_only=True)["state_dict"]
dense.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
model = copy.deepcopy(dense)
pruner = bp.Pruner(model, bp.Plan.uniform(module_layers(model), "block-punched:8x4", rate=3))
blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in (2, 5, 8)]  # where the dense network is imitated
fine_tune(pruner, ImageBatches(*cifar10(options.data, "train"), normalise, pad=4), teacher=dense, features=blocks,
          feature_weight=5, recipe=Recipe(epochs=options.epochs, bfloat16=True), checkpoint="resnet56.safetensors",
          progress=lambda s: print(f"\rstep {s.step} of {s.steps}, loss {s.loss:.3f}, {s.seconds:.0f} s ", end=""))
print(f"\n{pruner.finalize_()}")
bp.compile(model, example).save("resnet56.bp")
torch.onnx.export(dense, (example,), "resnet56.onnx", dynamo=False)
with bp.Session("resnet56.bp") as session:
    print(f"test accuracy {accuracy(dense, *test, 500):.2f} % dense, {accuracy(session.run, *test, 1):.2f} % pruned")
times = bench(Path("resnet56.bp"), ["blockpunch", "onnxruntime"], peer_model=Path("resnet56.onnx")).engines
print(", ".join(f"{name} {times[name].median_ms:.2f} ms" for name in times))
