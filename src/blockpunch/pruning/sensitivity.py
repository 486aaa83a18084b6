"""How much the network's answer moves when one layer's output does: the price of a layer's error, without labels.

The expected squared gradient of the answer with respect to a layer's output (its Fisher information, diagonal) times
the output's own energy: what a relative squared error of 1 there would cost, to first order. It brings the errors of
all layers to one currency, so that a rate can be spread over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from blockpunch.pruning.objectives import tensors

IMAGES = 128
"""Images that are looked at; the order of the layers settles with far fewer."""
BATCH = 8


def sensitivity(model: nn.Module, images: Sequence[torch.Tensor], layers: Sequence[str], *,
                seed: int = 0) -> dict[str, float]:
    """Layer -> expected cost of losing its whole output; only their ratios mean something.

    Args:
        model: dense; left as it is.
        images: batches of images.
        layers: module paths of layers that run once for an image.
        seed: of the labels that are drawn from the network's own answers.
    """
    generator = torch.Generator().manual_seed(seed)
    energy: dict[str, torch.Tensor] = {}
    slope: dict[str, torch.Tensor] = {}

    def after(name: str, output: torch.Tensor) -> None:
        axes = (0, 2, 3) if output.ndim == 4 else tuple(range(output.ndim - 1))
        values = output.detach().float()
        energy[name] = energy.get(name, 0) + values.var(axes, correction=0) * len(values)
        output.register_hook(lambda grad: slope.__setitem__(
            name, slope.get(name, 0) + grad.detach().float().square().sum(axes)))

    hooks = [model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: after(name, output))
             for name in layers]
    training = {module: module.training for module in model.modules()}
    count = 0
    try:
        model.eval()
        for batch in _spread(images):
            with torch.enable_grad():
                inputs = batch.clone().requires_grad_(True)
                torch.autograd.grad(_answer(model(inputs), generator), inputs)  # runs through all layers, keeps nothing
            count += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return {name: float((energy[name] * slope[name]).sum()) / count**2 if name in slope else 0.0 for name in layers}


def _spread(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """At most :data:`IMAGES` images from all batches evenly, in small batches: gradients need memory."""
    share = max(1, -(-IMAGES // len(images)))
    chosen = torch.cat([batch[:share] for batch in images])[:IMAGES]
    return list(chosen.split(BATCH))


def _answer(outputs: Any, generator: torch.Generator) -> torch.Tensor:
    """A scalar whose squared gradients are what matters: log-likelihood of drawn classes, or a random projection."""
    total = torch.zeros(())
    for output in tensors(outputs):
        output = output.float()
        if output.ndim == 2 and output.shape[1] > 1:
            scores = output.detach()
            ready = bool((scores >= 0).all()) and bool((scores.sum(1) - 1).abs().max() < 1e-3)
            chances = (scores if ready else scores.softmax(1)).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).to(output.device)
            logs = output.clamp_min(1e-8).log() if ready else output.log_softmax(1)
            total = total + logs.gather(1, drawn).sum().cpu()
        else:
            signs = (torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1).to(output.device)
            total = total + ((output * signs).sum() / output.detach().square().mean().sqrt().clamp_min(1e-12)).cpu()
    return total
