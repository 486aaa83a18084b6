"""What networks are pruned and judged on: CIFAR-10, or ten classes of ImageNet at 224 pixels; the dense networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from blockpunch.data import Labels, Pixels, Preprocess, cifar10, class_folders, open_image
from blockpunch.pruning.batches import ImageBatches
from blockpunch.pruning.recipe import Recipe, fast_bfloat16
from networks import NETWORKS, build

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True
torch.backends.cudnn.allow_tf32 = False  # accuracy is judged in float32
Normalise = Callable[[torch.Tensor], torch.Tensor]
Images = tuple[Pixels, Labels]


@dataclass(frozen=True)
class Task:
    """A network, and labelled photos to train on and to judge by: uint8 ``[n, 3, side, side]``."""

    network: str
    train: Images
    test: Images
    normalise: Normalise
    pad: int
    as_used: bool = False
    """Whether it trains on the batch-norms' stored statistics: those of ten classes do harm to one of a thousand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the network's input."""
        return NETWORKS[self.network].shape

    def batches(self, batch: int, images: int | None = None) -> ImageBatches:
        """All training photos (or the first ``images``), cropped from ``pad`` pixels of padding and mirrored."""
        pixels, labels = self.train
        return ImageBatches(pixels[:images], labels[:images], self.normalise, batch=batch, pad=self.pad, device=DEVICE)

    def calibration(self, count: int) -> list[torch.Tensor]:
        """Some training photos as they are, for pruning in one shot."""
        chosen = np.random.default_rng(0).permutation(len(self.train[0]))[:count]
        return [self.normalise(part) for part in torch.from_numpy(self.train[0][chosen]).to(DEVICE).split(100)]

    def recipe(self, epochs: int, lr: float, **more: Any) -> Recipe:
        """How the network is trained here, for so long and with such a learning rate."""
        return Recipe(epochs=epochs, lr=lr, optimizer="adam" if self.as_used else "sgd", as_used=self.as_used,
                      bfloat16=fast_bfloat16(DEVICE), **{"weight_decay": 5e-4, **more})

    def accuracy(self, model: nn.Module, part: slice = slice(None)) -> float:
        """Percent of (a part of) the test photos that ``model`` gets right, in float32."""
        return accuracy(model, self.test[0][part], self.test[1][part], self.normalise)


def load_task(network: str, data: Path) -> Task:
    """The task of ``network``; ``data`` is the folder cifar-10-batches-py, or one with ``train`` and ``val``."""
    if network == "lite0-imagenette":
        return Task(network, photos(data / "train"), photos(data / "val"), centred, pad=16, as_used=True)
    return Task(network, cifar10(data, "train"), cifar10(data, "test"), normalise, pad=4)


def photos(folder: Path) -> Images:
    """All photos in class folders, 224 x 224."""
    paths, labels, _ = class_folders(folder)
    whole = Preprocess(resize=224, crop=224)
    return np.stack([whole.pixels(open_image(path)).transpose(2, 0, 1) for path in paths]), labels


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Bytes ``[n, 3, 32, 32]`` -> what all CIFAR networks here take."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1)
                 for values in ((.485, .456, .406), (.229, .224, .225)))
    return (images.float() / 255 - mean) / std


def centred(images: torch.Tensor) -> torch.Tensor:
    """Bytes -> what EfficientNet-Lite takes."""
    return (images.float() - 127) / 128


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Pixels, labels: npt.NDArray[np.int64], normalise: Normalise,
             batch: int = 50) -> float:
    """Percent of the photos that ``model`` gets right, in float32."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(pixels), batch):
        guesses = model(normalise(torch.from_numpy(pixels[start:start + batch]).to(device))).argmax(1).cpu().numpy()
        right += int((guesses == labels[start:start + batch]).sum())
    return 100 * right / len(pixels)


def dense_network(name: str, weights: Path | None) -> nn.Module:
    """A trained network on the CPU: the shared weights where there are some, else what train_dense.py left.

    Raises:
        FileNotFoundError: it has not been trained yet.
    """
    model = build(name)
    if NETWORKS[name].trained:
        return model
    path = None if weights is None else weights / f"{name}.safetensors"
    if path is None or not path.exists():
        raise FileNotFoundError(f"no trained weights of {name}: run benchmarks/train_dense.py {name}")
    from safetensors.torch import load_file

    model.load_state_dict({key: value.float() if value.is_floating_point() else value
                           for key, value in load_file(path).items()})
    return model.eval()


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that no training changes: the teacher."""
    return copy.deepcopy(model).eval().requires_grad_(False)
