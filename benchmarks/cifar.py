"""CIFAR-10 for the benchmarks: training batches, test accuracy, and the dense networks that are pruned."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

from blockpunch.data import cifar10
from blockpunch.pruning.batches import ImageBatches
from networks import NETWORKS, build

CLASSES = 10


def normalise(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Bytes ``[n, 3, 32, 32]`` -> what all CIFAR networks here take."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((.485, .456, .406), (.229, .224, .225)))
    return (torch.as_tensor(images).float() / 255 - mean) / std


def training_batches(data: Path, batch: int = 128, images: int | None = None) -> ImageBatches:
    """All training images (or the first ``images``), cropped from 4 pixels of padding and mirrored."""
    pixels, labels = cifar10(data, "train")
    return ImageBatches(pixels[:images], labels[:images], normalise, batch=batch, pad=4)


def calibration_batches(data: Path, count: int = 1000) -> list[torch.Tensor]:
    """Some training images as they are, for pruning in one shot."""
    pixels, _ = cifar10(data, "train")
    return list(normalise(pixels[np.random.default_rng(0).permutation(len(pixels))[:count]]).split(250))


@torch.no_grad()
def accuracy(model: nn.Module, pixels: np.ndarray, labels: np.ndarray, batch: int = 500) -> float:
    """Percent of the images that ``model`` gets right, in float32."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(pixels), batch):
        guesses = model(normalise(pixels[start:start + batch]).to(device)).argmax(1).cpu().numpy()
        right += int((guesses == labels[start:start + batch]).sum())
    return 100 * right / len(pixels)


def dense_network(name: str, weights: Path | None) -> nn.Module:
    """A trained CIFAR network: the shared weights where there are some, else what train_cifar10.py left in ``weights``.

    Raises:
        FileNotFoundError: it has not been trained yet.
    """
    model = build(name)
    if NETWORKS[name].trained:
        return model
    path = None if weights is None else weights / f"{name}.safetensors"
    if path is None or not path.exists():
        raise FileNotFoundError(f"no trained weights of {name}: run benchmarks/train_cifar10.py {name}")
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
    return model.eval()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that no training changes: the teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)
