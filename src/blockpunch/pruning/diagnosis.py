"""Why a training step failed: which layer puts out what is not a number, and what is wrong with a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from blockpunch.errors import TrainingError


def first_not_finite(model: nn.Module, run: Callable[[], Any]) -> str:
    """The first place where finite numbers become others: run ``run`` once more and watch the model's layers.

    Falls back on the gradients of the parameters: those behind the fault in the order of the backward pass are not
    finite either, so the last layer with such a gradient is named.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"weights of layer '{name.rpartition('.')[0]}'"
    seen: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            if not seen and not all_finite(output):
                seen.append(f"output of layer '{name}'" if all_finite(inputs) else f"input of layer '{name}'")
        return after

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()
             if not any(module.children())]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if seen:
        return seen[0]
    broken = [name for name, parameter in model.named_parameters()
              if parameter.grad is not None and not bool(parameter.grad.isfinite().all())]
    return f"gradient of layer '{broken[-1].rpartition('.')[0]}'" if broken else "loss function"


def all_finite(values: Any) -> bool:
    """Whether all floating-point tensors of nested ``values`` hold numbers only."""
    return all(bool(tensor.isfinite().all()) for tensor in nested(values) if tensor.is_floating_point())


def nested(values: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested values, whatever else is among them."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for item in values.values() if isinstance(values, dict) else values:
            yield from nested(item)


def check_labels(outputs: Any, labels: Any) -> None:
    """Nothing where ``labels`` are class numbers that scores ``[N, classes, ...]`` have, or not class numbers at all.

    Raises:
        TrainingError: a label is out of range.
    """
    if not isinstance(outputs, torch.Tensor) or not isinstance(labels, torch.Tensor) or outputs.ndim < 2:
        return
    if labels.is_floating_point() or labels.numel() == 0 or labels.ndim >= outputs.ndim:
        return
    low, high = torch.stack(torch.aminmax(labels)).tolist()  # a device is waited for once
    if low < 0 or high >= outputs.shape[1]:
        wrong = low if low < 0 else high
        raise TrainingError(f"label {wrong} is out of range: the model has {outputs.shape[1]} classes",
                            fix=f"labels are 0 to {outputs.shape[1] - 1}")


def not_compiled(error: Exception) -> TrainingError:
    """The error that tells why ``torch.compile`` failed."""
    reason = " ".join(str(error).strip().splitlines()[:2])  # who raised it, and what
    return TrainingError(f"torch.compile cannot compile the network: {reason}", fix="train without compile")


def refused(batch: Any, step: int, error: Exception) -> TrainingError:
    """The error that tells of a batch that the model or the loss did not take."""
    shapes = ", ".join(f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in nested(batch))
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return TrainingError(f"the model or the loss does not take the batch ({shapes or type(batch).__name__}): {first}",
                         where=f"step {step}", fix="check that the loader gives what the model takes")
