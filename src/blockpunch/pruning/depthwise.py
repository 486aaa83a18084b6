"""Depthwise convolutions under bfloat16 on a CPU: forward in bfloat16, backward in float32.

torch's backward pass of a depthwise convolution has no fast kernel for bfloat16 on CPUs: with AVX-512 it takes four to
ten times as long as in float32, more than all the rest of a MobileNet's step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Ints = int | Sequence[int]


class DepthwiseInFloat32(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, depthwise ``conv2d`` under CPU autocast is differentiated in float32."""

    def __torch_function__(self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        """Call ``func``, or the depthwise convolution in its place."""
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_autocast_enabled("cpu"):
            result = _conv2d(*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


def _conv2d(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride: Ints = 1,
            padding: Ints | str = 0, dilation: Ints = 1, groups: int = 1) -> torch.Tensor | None:
    """The convolution if it is depthwise and on a CPU; else None. Arguments as ``torch.conv2d`` has them."""
    if groups == 1 or input.ndim != 4 or groups != input.shape[1] or input.device.type != "cpu" \
            or isinstance(padding, str):
        return None
    with torch.autocast("cpu", enabled=False):
        result = _Depthwise.apply(input, weight, _pair(stride), _pair(padding), _pair(dilation))
        return result if bias is None else result + bias.to(result.dtype).view(-1, 1, 1)


def _pair(value: Ints) -> list[int]:
    pair = [value] if isinstance(value, int) else list(value)
    return pair * 2 if len(pair) == 1 else pair


class _Depthwise(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, *where: list[int]) -> torch.Tensor:
        ctx.type, ctx.where, x = x.dtype, where, x.bfloat16()
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight.bfloat16(), None, *where, x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grads = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None, *ctx.where, False, [0, 0], x.shape[1],
            [*ctx.needs_input_grad[:2], False])
        return (*(None if g is None else g.to(kind) for g, kind in zip(grads, (ctx.type, weight.dtype), strict=False)),
                None, None, None)
