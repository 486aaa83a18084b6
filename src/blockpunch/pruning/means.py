"""A layer behind a global mean, shown the map before it: there are many samples, where the mean leaves one per image.

The mean of a linear layer's outputs over a map is its output for the mean of the map, so the layer may be looked at
as if it stood before the mean. Classifiers have about a thousand columns and see a few hundred images: fitted to means
they learn the images by heart. On MobileNetV2's, 4x1 at rate 4 from 850 photos, the squared error on photos held out is
0.24 when fitted to means, and 0.21 when fitted to positions. Where positions differ in other ways than images do it is
the other way round, so images held out decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from blockpunch.pruning.hessian import Moments, positions

HELD_OUT = 4
"""Every so many-th image is not fitted to but judges: what is fitted looks better than it is, most of all where a layer
sees few samples, as classifiers do."""
FEWEST = 32
"""Images below which all of them do both."""
_MAP = "map_before_mean"

Inputs = list[tuple[torch.Tensor, ...]]


class MeansWatched(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, results of global means remember the map ``[N, C, H, W]`` that they are the mean of.

    Means are known by their values, whatever computed them; so are the reshaped copies that are made of them.
    """

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call ``func``, and mark its result."""
        result = func(*args, **(kwargs or {}))
        x = args[0] if args else None
        if isinstance(x, torch.Tensor) and isinstance(result, torch.Tensor) and result is not x:
            with torch._C.DisableTorchFunction():
                found = getattr(x, _MAP, None)
                if found is not None and _same(x, result):
                    setattr(result, _MAP, found)
                elif found is None and _is_mean(x, result):
                    setattr(result, _MAP, x)
        return result


def held_out(before: int, x: torch.Tensor, images: int) -> torch.Tensor:
    """Which of the images ``x``, that came after ``before`` others of ``images`` in all, are not to be fitted to."""
    if images < FEWEST:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    return torch.arange(before + 1, before + len(x) + 1, device=x.device) % HELD_OUT == 0


def best_inputs(layer: nn.Module, inputs: Inputs, moments_of: Callable[[Inputs], Moments],
                fit: Callable[[Moments], torch.Tensor]) -> Inputs:
    """The ``inputs`` of a layer, or the maps before them, whichever of the two it is better fitted to.

    Args:
        layer: that is to be fitted.
        inputs: of each batch, (of the dense network, of the pruned one).
        moments_of: gathers them.
        fit: gives the layer's new weight, in the shape of moments.
    """
    images = sum(len(x) for _, x in inputs)
    maps = [tuple(unpooled(layer, x, images) for x in pair) for pair in inputs]
    if images < FEWEST or any(x is given for pair, own in zip(maps, inputs, strict=True)
                              for x, given in zip(pair, own, strict=True)):
        return inputs
    starts = [sum(len(x) for _, x in inputs[:index]) for index in range(len(inputs))]
    held = [held_out(start, x, images) for start, (_, x) in zip(starts, inputs, strict=True)]
    judge = moments_of(_part(inputs, held))
    errors = [judge.error(fit(moments_of(_part(shown, [~part for part in held])))) for shown in (inputs, maps)]
    return maps if errors[1] < errors[0] else inputs


def _part(inputs: Inputs, chosen: list[torch.Tensor]) -> Inputs:
    """The chosen images of each batch, without batches that have none."""
    return [tuple(x[part] for x in pair) for pair, part in zip(inputs, chosen, strict=True) if bool(part.any())]


def unpooled(layer: nn.Module, x: torch.Tensor, images: int) -> torch.Tensor:
    """What to look at in place of the input ``x`` of a layer: the map that ``x`` is the mean of, where that is better.

    It is where the map shows no more positions than are looked at of any layer, for so many ``images``.
    """
    found: torch.Tensor | None = getattr(x, _MAP, None)
    if found is None or found[0, 0].numel() > positions(layer, images):
        return x
    if isinstance(layer, nn.Linear):
        return found.permute(0, 2, 3, 1) if x.ndim == 2 else x
    return found if layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.stride == (1, 1) else x


def _same(x: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether the result holds the values of ``x``, image by image."""
    if result.ndim < 2 or result.shape[0] != x.shape[0] or result.numel() != x.numel():
        return False
    return bool((result.reshape(len(x), -1) == x.reshape(len(x), -1)).all())


def _is_mean(x: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether the result is the mean over each plane of a map."""
    if x.ndim != 4 or result.shape not in (x.shape[:2], (*x.shape[:2], 1, 1)) or x[0, 0].numel() < 2 \
            or not x.is_floating_point():
        return False
    return bool(torch.allclose(result.flatten(1).float(), x.float().mean(dim=(2, 3)), rtol=1e-3, atol=1e-5))
