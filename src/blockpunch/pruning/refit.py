"""Least-squares refit: the weights that stay take over what they can of those that go. No labels, no gradient, seconds.

For each pruned layer the surviving weights of a filter are solved for, so that the layer's output on a few images is as
near as possible to the dense layer's: with ``G`` the Gram matrix of the layer's inputs and ``S`` the surviving columns,
``w_S = G_SS^-1 (G w)_S``. Filters with the same columns (all filters of a block) share one factorisation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blockpunch.errors import TrainingError
from blockpunch.pruning.objectives import images_of
from blockpunch.pruning.torch_prune import Pruner

LARGEST = 6000
"""Columns of a layer (channels x kernel positions) above which its Gram matrix is not worth its memory."""


def refit_(pruner: Pruner, batches: Iterable[Any], *, damping: float = 0.01, positions: int = 100) -> list[str]:
    """Prune the model of ``pruner`` in place and refit what stays; call it instead of ``pruner.apply_()``.

    The model must still be dense: its own weights are the target. Batch-norm statistics are then measured anew.
    Usually worth it before any training; after it, train as usual.

    Args:
        pruner: its masks decide what stays.
        batches: a few hundred images in all, as batches of images or of sequences that begin with them; gone through
            twice.
        damping: added to the diagonal of each Gram matrix, as a share of its mean.
        positions: output positions per image that are used, chosen at random (torch's global generator).

    Returns:
        The layers that were refitted; others (too large, padded with anything but zeros) are pruned alone.

    Raises:
        TrainingError: no images.
    """
    layers = {name: module for name, module in pruner.model.named_modules() if name in pruner.masks}
    grams = _gram_matrices(pruner.model, {n: m for n, m in layers.items() if _fits(m)}, batches, positions)
    with torch.no_grad():
        for name, gram in grams.items():
            weight = layers[name].weight
            solved = _solve(weight.flatten(1), pruner.masks[name].flatten(1).to(weight.device), gram, damping)
            if bool(solved.isfinite().all()):
                weight.copy_(solved.reshape(weight.shape))
    pruner.step()
    measure_statistics_(pruner.model, batches)
    return list(grams)


def measure_statistics_(model: nn.Module, batches: Iterable[Any]) -> None:
    """Set the running statistics of all batch-norms to the mean over ``batches``; nothing else changes."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
             and module.running_mean is not None]
    if not norms:
        return
    training = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(images_of(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in training.items():
        module.training = mode


def _fits(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return bool(layer.in_features <= LARGEST)
    assert isinstance(layer, nn.Conv2d)
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return bool(plain and layer.weight[0].numel() <= LARGEST)


def _gram_matrices(model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Any],
                   positions: int) -> dict[str, torch.Tensor]:
    """Name -> Gram matrices ``[conv groups, columns, columns]`` of the inputs of the dense layers."""
    grams: dict[str, torch.Tensor] = {}

    def before(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        columns = _columns(layer, inputs[0].detach().float(), positions)
        grams[name] = grams.get(name, 0) + columns @ columns.transpose(1, 2)

    hooks = [layer.register_forward_pre_hook(lambda module, inputs, name=name: before(name, module, inputs))
             for name, layer in layers.items()]
    training = {module: module.training for module in model.modules()}
    model.eval()
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                model(images_of(batch))
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    if count == 0:
        raise TrainingError("no images to refit on", fix="give batches that can be gone through more than once")
    return grams


def _columns(layer: nn.Module, x: torch.Tensor, positions: int) -> torch.Tensor:
    """What the filters of a layer are multiplied with: ``[conv groups, columns, samples]``."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        patches = x[:, :, ::layer.stride[0], ::layer.stride[1]].flatten(2)
    else:
        patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    if patches.shape[2] > positions:
        patches = patches[:, :, torch.randperm(patches.shape[2])[:positions]]
    samples = patches.transpose(0, 1).flatten(1)
    return samples.reshape(layer.groups, -1, samples.shape[1])


def _solve(weight: torch.Tensor, mask: torch.Tensor, grams: torch.Tensor, damping: float) -> torch.Tensor:
    """Refitted weights ``[filters, columns]``; zero where the mask is."""
    solved = torch.zeros(weight.shape, dtype=torch.float64)
    per_group = len(weight) // len(grams)
    for group, gram in enumerate(grams.double()):
        gram.diagonal().add_(damping * gram.diagonal().mean() + 1e-12)
        rows = slice(group * per_group, (group + 1) * per_group)
        wanted = weight[rows].double() @ gram
        same: dict[bytes, list[int]] = {}
        for row, kept in enumerate(mask[rows]):
            same.setdefault(kept.cpu().numpy().tobytes(), []).append(row)
        for members in same.values():
            columns = mask[rows][members[0]].nonzero()[:, 0]
            if len(columns):
                factor = torch.linalg.cholesky(gram[columns][:, columns])
                part = torch.cholesky_solve(wanted[members][:, columns].T, factor).T
                solved[group * per_group + torch.tensor(members)[:, None], columns] = part
    return solved.to(weight.dtype)
