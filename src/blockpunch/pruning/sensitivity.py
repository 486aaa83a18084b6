"""How much the network's answer moves when a layer is pruned: the price of its error, without labels.

What the pruned weight does to the layer's output is multiplied with the gradient of the answer there, image by image:
the mean of the squared products is the pruned weight's distance under the network's Fisher information, the loss of
accuracy to second order. Over the error of that output it is the price of a relative squared error of 1, which brings
the errors of all layers to one currency. Errors that all positions of a map share count for what they are: a pooling
behind does not average them away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blockpunch.pruning.objectives import tensors

IMAGES = 256
"""Images that are looked at: with fewer, chance decides between layers."""
TEMPERATURE = 4.0
"""Softens class scores, as distillation does: the network is never as sure as on the photos it was trained on, least
of all once it is pruned."""
BATCH = 8


def sensitivity(model: nn.Module, images: Sequence[torch.Tensor], pruned: Mapping[str, torch.Tensor], *,
                seed: int = 0) -> dict[str, float]:
    """Layer -> expected cost of losing its whole output; only their ratios mean something.

    Args:
        model: dense; left as it is.
        images: batches of images.
        pruned: layer (module path; it runs once for an image) -> its weight pruned at some rate.
        seed: of the labels that are drawn from the network's own answers.
    """
    generator = torch.Generator().manual_seed(seed)
    error, energy, cost = (dict.fromkeys(pruned, 0.0) for _ in range(3))

    def after(name: str, layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> None:
        with torch.no_grad():
            axes = (0, 2, 3) if output.ndim == 4 else tuple(range(output.ndim - 1))
            change = _output(layer, x, pruned[name] - layer.weight)
            change = change - change.mean(axes, keepdim=True)
            error[name] += float(change.square().sum())
            energy[name] += float((output - output.mean(axes, keepdim=True)).square().sum())
        output.register_hook(lambda grad: cost.__setitem__(
            name, cost[name] + float((grad.detach() * change).flatten(1).sum(1).square().sum())))

    hooks = [model.get_submodule(name).register_forward_hook(
        lambda layer, inputs, output, name=name: after(name, layer, inputs[0].detach(), output)) for name in pruned]
    training = {module: module.training for module in model.modules()}
    count = 0
    try:
        model.eval()
        for batch in spread(images, IMAGES, BATCH):
            with torch.enable_grad():
                inputs = batch.clone().requires_grad_(True)
                torch.autograd.grad(answer(model(inputs), generator), inputs)  # runs through all layers, keeps nothing
            count += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return {name: cost[name] / count * energy[name] / error[name] if error[name] > 0 else 0.0 for name in pruned}


def _output(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the layer would put out with another weight and no bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    assert isinstance(layer, nn.Conv2d)
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def spread(images: Sequence[torch.Tensor], count: int, size: int) -> list[torch.Tensor]:
    """At most ``count`` images from all batches evenly, in batches of ``size``: gradients need memory."""
    share = max(1, -(-count // len(images)))
    chosen = torch.cat([batch[:share] for batch in images])[:count]
    return list(chosen.split(size))


def answer(outputs: Any, generator: torch.Generator) -> torch.Tensor:
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
