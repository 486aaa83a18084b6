"""What has to be known of a model and of images before layers are pruned one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from blockpunch.errors import DataError, ModelError
from blockpunch.plan import Layer
from blockpunch.pruning.hessian import LARGEST, is_plain


def images_in(model: nn.Module, images: Sequence[Any], layers: Iterable[Layer]) -> Counter[str]:
    """How often the model calls each layer for an image; proves that it can take the images.

    Raises:
        DataError: no images, images that are not finite, or that the model cannot take.
        ModelError: a weight is not finite.
    """
    layers = list(layers)
    for layer in layers:
        if not bool(torch.isfinite(model.get_submodule(layer.name).weight).all()):
            raise ModelError("some weights are NaN or infinite", where=f"layer '{layer.name}'",
                             fix="repair the model; such weights cannot be ranked")
    if not images:
        raise DataError("no images to prune on", fix="give a few hundred; labels are not needed")
    for batch in images:
        if not isinstance(batch, torch.Tensor) or not batch.is_floating_point() or not len(batch):
            raise DataError("a batch that holds no images", fix="give float tensors [N, C, H, W], normalised")
        if not bool(torch.isfinite(batch).all()):
            raise DataError("the images hold NaN or infinite values", fix="check how they are normalised")
    calls: Counter[str] = Counter()
    hooks = [model.get_submodule(layer.name).register_forward_pre_hook(
        lambda _, __, name=layer.name: calls.update([name])) for layer in layers]
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(images[0][:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"the model cannot take images {list(images[0].shape[1:])}: {error}",
                        fix="give batches as the model takes them, normalised, [N, C, H, W]") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return calls


def shared(model: nn.Module, layers: Iterable[Layer]) -> dict[str, str]:
    """Layer -> another layer with the same weight, where there is one."""
    users: dict[int, list[str]] = {}
    for layer in layers:
        users.setdefault(id(model.get_submodule(layer.name).weight), []).append(layer.name)
    return {name: names[names[0] == name] for names in users.values() if len(names) > 1 for name in names}


def unfit(layer: nn.Module, calls: int, shares_with: str | None = None) -> str:
    """Why a layer cannot be pruned by its second moments, or ''."""
    if shares_with is not None:
        return f"it shares its weight with '{shares_with}'"
    if calls != 1:
        return "it does not run" if calls == 0 else f"it runs {calls} times for an image"
    if not is_plain(layer):
        return "its padding is not plain zeros"
    columns = layer.weight[0].numel()
    return f"it has {columns} inputs for each filter, more than {LARGEST}" if columns > LARGEST else ""
