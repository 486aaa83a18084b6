"""What a change of a layer's weight does to the network's answer: gradients of the weight, image by image.

:func:`blockpunch.pruning.sensitivity.sensitivity` says what an error of a layer's output costs. But errors of the same
size are not felt alike: where whole channels are gone, all positions of a map err together. The gradients of a few
images tell one change of a layer from another without running the network again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from blockpunch.pruning.sensitivity import answer, spread

IMAGES = 256
"""Images whose gradients are kept, where they fit: with fewer, chance decides between layers."""
MEMORY, FEWEST = 512e6, 48
"""Bytes that a layer's gradients may take, and images that must fit in for them to be worth it."""
BATCH = 8


class Gradients:
    """Gradients of the answer with respect to a layer's weight and to its output's mean, for each image."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        self.layer = layer
        self._weight: list[torch.Tensor] = []
        self._mean: list[torch.Tensor] = []

    def cost(self, weight: torch.Tensor, shift: torch.Tensor) -> float:
        """Mean square of what the answer moves by.

        Args:
            weight: in place of the layer's.
            shift: what the new weight lacks in the mean of each filter's output, which goes into the bias.
        """
        change = (weight.reshape(self.layer.weight.shape) - self.layer.weight.detach()).flatten()
        moves = torch.stack(self._weight) @ change + torch.stack(self._mean) @ shift.flatten().to(change.dtype)
        return float(moves.square().mean())

    def add(self, x: torch.Tensor, grad: torch.Tensor) -> None:
        """Take in the layer's input and the gradient at its output, of some images."""
        room = kept(self.layer.weight.numel()) - len(self._weight)
        for image, at in list(zip(x.split(1), grad.split(1), strict=True))[:room]:
            if isinstance(self.layer, nn.Conv2d):
                found = torch.nn.grad.conv2d_weight(image, self.layer.weight.shape, at, self.layer.stride,
                                                    self.layer.padding, self.layer.dilation, self.layer.groups)
                self._mean.append(at.sum((0, 2, 3)))
            else:
                rows = at.reshape(-1, at.shape[-1])
                found = rows.T @ image.reshape(-1, image.shape[-1])
                self._mean.append(rows.sum(0))
            self._weight.append(found.flatten())


def kept(weights: int) -> int:
    """Images whose gradients are kept of a layer with so many weights."""
    fit = int(MEMORY / 4 / weights)
    return min(IMAGES, fit) if fit >= FEWEST else 0


def gradients(model: nn.Module, images: Sequence[torch.Tensor], names: Sequence[str],
              seed: int) -> dict[str, Gradients]:
    """Of the layers ``names`` (which run once for an image) in the dense model, unless they are too large.

    Args:
        model: in eval mode, as it stays.
        images: batches, of which some images are taken.
        names: of convolutions and linear layers.
        seed: of the labels that are drawn from the network's own answers.
    """
    layers = {name: model.get_submodule(name) for name in names}
    found = {name: Gradients(layer) for name, layer in layers.items() if kept(layer.weight.numel())}

    def after(name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        output.register_hook(lambda grad: found[name].add(x.detach(), grad.detach()))

    hooks = [model.get_submodule(name).register_forward_hook(
        lambda _, inputs, output, name=name: after(name, inputs[0], output)) for name in found]
    generator = torch.Generator().manual_seed(seed)
    try:
        for batch in spread(images, IMAGES, BATCH):
            with torch.enable_grad():
                inputs = batch.clone().requires_grad_(True)
                torch.autograd.grad(answer(model(inputs), generator), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
