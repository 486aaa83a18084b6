"""How much the network's answer moves when a layer's weight changes: the price of a candidate, without labels.

The change of a weight, multiplied with the gradient of the answer there, image by image: the mean of the squared
products is the change's length under the network's Fisher information, the loss of accuracy to second order. It brings
all layers to one currency, and tells errors of the same size from each other: where whole channels are gone, all
positions of a map err together, and no pooling behind averages them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blockpunch.pruning.objectives import tensors

IMAGES = 256
"""Images whose gradients are kept, where they fit: with fewer, chance decides between layers."""
MEMORY, FEWEST = 512e6, 32
"""Bytes that a layer's gradients may take, and images that are kept in any case."""
TEMPERATURE = 4.0
"""Softens class scores, as distillation does: the network is never as sure as on the photos it was trained on, least
of all once it is pruned."""
BATCH = 8


class Gradients:
    """Gradients of the answer with respect to a layer's weight and to its output's mean, for each image.

    That of the weight is the product of the gradient at the outputs with the inputs there. It is kept as these two
    factors where they are smaller, which lets layers of any size in.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        self.layer = layer
        self._weight: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._mean: list[torch.Tensor] = []

    def __len__(self) -> int:
        """Images whose gradients are kept."""
        return len(self._weight)

    def cost(self, weight: torch.Tensor, shift: torch.Tensor) -> float:
        """Mean square of what the answer moves by; 0 where it does not depend on the layer.

        Args:
            weight: in place of the layer's.
            shift: what the new weight lacks in the mean of each filter's output, which goes into the bias.
        """
        if not self._weight:
            return 0.0
        change = (weight.reshape(self.layer.weight.shape) - self.layer.weight.detach()).flatten(1)
        moves = torch.stack([(outer * (change if inputs is None else change @ inputs)).sum()
                             for outer, inputs in self._weight])
        moves += torch.stack(self._mean) @ shift.flatten().to(change.dtype)
        return float(moves.square().mean())

    def add(self, x: torch.Tensor, grad: torch.Tensor) -> None:
        """Take in the layer's input and the gradient at its output, of some images."""
        filters, columns = self.layer.weight.flatten(1).shape
        for image, at in zip(x.split(1), grad.split(1), strict=True):
            outer = at[0].flatten(1) if isinstance(self.layer, nn.Conv2d) else at.reshape(-1, filters).T
            factors = outer.shape[1] * (filters + columns)
            split = getattr(self.layer, "groups", 1) == 1 and factors < filters * columns
            if len(self) >= kept(factors if split else filters * columns):
                return
            self._mean.append(outer.sum(1))
            self._weight.append((outer.clone(), self._inputs(image)) if split else (self._product(image, at), None))

    def _inputs(self, image: torch.Tensor) -> torch.Tensor:
        """What the filters are multiplied with: ``[columns, positions]``."""
        if isinstance(self.layer, nn.Linear):
            return image.reshape(-1, image.shape[-1]).T.clone()
        layer = self.layer
        return functional.unfold(image, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0]

    def _product(self, image: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The gradient of the weight: ``[filters, columns]``."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            return at.reshape(-1, at.shape[-1]).T @ image.reshape(-1, image.shape[-1])
        return nn.grad.conv2d_weight(image, layer.weight.shape, at, layer.stride, layer.padding, layer.dilation,
                                     layer.groups).flatten(1)


def kept(size: int) -> int:
    """Images whose gradients are kept of a layer, of so many numbers each."""
    return min(IMAGES, max(FEWEST, int(MEMORY / 4 / size)))


def gradients(model: nn.Module, images: Sequence[torch.Tensor], names: Sequence[str],
              seed: int) -> dict[str, Gradients]:
    """Of the layers ``names`` (which run once for an image) in the dense model.

    Args:
        model: in eval mode, as it stays.
        images: batches, of which some images are taken.
        names: of convolutions and linear layers.
        seed: of the labels that are drawn from the network's own answers.
    """
    found = {name: Gradients(model.get_submodule(name)) for name in names}

    def after(name: str, x: torch.Tensor, output: torch.Tensor) -> None:
        output.register_hook(lambda grad: found[name].add(x.detach(), grad.detach()))

    hooks = [model.get_submodule(name).register_forward_hook(
        lambda _, inputs, output, name=name: after(name, inputs[0], output)) for name in found]
    generator = torch.Generator().manual_seed(seed)
    try:
        for batch in _spread(images, IMAGES, BATCH):
            with torch.enable_grad():
                inputs = batch.clone().requires_grad_(True)
                torch.autograd.grad(_answer(model(inputs), generator), inputs)  # through all layers, keeps nothing
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _spread(images: Sequence[torch.Tensor], count: int, size: int) -> list[torch.Tensor]:
    """At most ``count`` images from all batches evenly, in batches of ``size``: gradients need memory."""
    share = max(1, -(-count // len(images)))
    chosen = torch.cat([batch[:share] for batch in images])[:count]
    return list(chosen.split(size))


def _answer(outputs: Any, generator: torch.Generator) -> torch.Tensor:
    """A scalar whose squared gradients are what matters: class scores by how probable they are, or all outputs alike.

    A random mixture of scores with the covariance ``diag(p) - p p^T`` has the Fisher information of the probabilities
    ``p`` as the mean of its squared gradients, like the log-likelihood of a drawn class, and far less scatter where the
    network is sure.
    """
    total = torch.zeros(())
    for output in tensors(outputs):
        output = output.float()
        if output.ndim == 2 and output.shape[1] > 1:
            scores = output.detach()
            if bool((scores >= 0).all()) and bool((scores.sum(1) - 1).abs().max() < 1e-3):  # already probabilities
                output = output.clamp_min(1e-8).log()
            root = (output.detach() / TEMPERATURE).softmax(1).sqrt()
            drawn = root * torch.randn(root.shape, generator=generator).to(root.device)
            mixture = drawn - root.square() * drawn.sum(1, keepdim=True)
            total = total + (mixture * output / TEMPERATURE).sum().cpu()
        else:
            signs = (torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1).to(output.device)
            total = total + ((output * signs).sum() / output.detach().square().mean().sqrt().clamp_min(1e-12)).cpu()
    return total
