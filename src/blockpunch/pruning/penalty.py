"""The value and gradient of a weighted sum of squares over many weights: the form that every penalty here takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class _WeightedSquares(torch.autograd.Function):  # type: ignore[misc]
    """``sum(coefficient * weight^2)`` over all weights; the products of the forward pass are half the gradient."""

    @staticmethod
    def forward(ctx: Any, coefficients: Sequence[torch.Tensor], *weights: torch.Tensor) -> torch.Tensor:
        products = [weight * coefficient for weight, coefficient in zip(weights, coefficients, strict=True)]
        ctx.save_for_backward(*products)
        return torch.stack([(product * weight).sum() for product, weight in zip(products, weights, strict=True)]).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return None, *(product * (2 * gradients[0]) for product in ctx.saved_tensors)


def weighted_squares(weights: Sequence[torch.Tensor], coefficients: Sequence[torch.Tensor]) -> torch.Tensor:
    """``sum(coefficients * weights^2)`` as a scalar with a gradient, outside of any autocast.

    ``coefficients`` have the shapes of ``weights`` and are constants.
    """
    with torch.autocast(weights[0].device.type, enabled=False):
        value: torch.Tensor = _WeightedSquares.apply(coefficients, *weights)
    return value
