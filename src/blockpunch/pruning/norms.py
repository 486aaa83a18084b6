"""Which batch-norms stand behind which layers: seen by watching one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class NormWatch:
    """Watches the model from now on until :meth:`close`; ``found`` maps layers to the batch-norms that read them."""

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, list[nn.Module]] = {}
        self._producers: dict[int, str] = {}
        self._alive: list[torch.Tensor] = []  # ids are unique only as long as the tensors live
        self._names = {module: name for name, module in model.named_modules()}
        self._hooks = [module.register_forward_hook(self._after) for module in self._names
                       if isinstance(module, (*BATCH_NORMS, nn.Conv2d, nn.Linear))]

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, BATCH_NORMS):
            behind = self.found.setdefault(self._producers.get(id(inputs[0]), ""), []) if inputs else []
            if module not in behind:
                behind.append(module)
        else:
            self._alive.append(output)
            self._producers[id(output)] = self._names[module]

    def close(self) -> None:
        """Watch no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._alive, self._producers = [], [], {}


def norms_behind(model: nn.Module, example: Any) -> dict[str, list[nn.Module]]:
    """Layer name -> the batch-norms that read its output, seen in one run on ``example`` (or a tuple of them)."""
    training = {module: module.training for module in model.modules()}
    watch = NormWatch(model)
    try:
        model.eval()
        with torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        watch.close()
        for module, mode in training.items():
            module.training = mode
    return watch.found


def has_norms(model: nn.Module) -> bool:
    """Whether any batch-norm is in the model."""
    return any(isinstance(module, BATCH_NORMS) for module in model.modules())
