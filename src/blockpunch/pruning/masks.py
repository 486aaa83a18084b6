"""Masks that are held on parameters while these are trained: by zeroed weights and by zeroed gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn


@dataclass
class HeldMask:
    """A parameter, its mask (same shape, True stays), and the hook that masks its gradient."""

    parameter: nn.Parameter
    mask: torch.Tensor
    hook: Any = None

    def on_device(self) -> torch.Tensor:
        """The mask beside its parameter."""
        if self.mask.device != self.parameter.device:
            self.mask = self.mask.to(self.parameter.device)
        return self.mask


class HeldMasks:
    """Masks by the names of their parameters."""

    def __init__(self) -> None:
        self._items: dict[str, HeldMask] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._items

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._items[name].mask

    def names(self) -> set[str]:
        """Of all parameters that are held."""
        return set(self._items)

    def hold(self, name: str, parameter: nn.Parameter, mask: torch.Tensor) -> None:
        """Mask a parameter from now on; its gradients too, so that no optimizer builds up momentum for what is gone."""
        if name in self._items:
            self._items[name].mask = mask
            return
        item = self._items[name] = HeldMask(parameter, mask)
        if parameter.requires_grad:
            item.hook = parameter.register_hook(lambda grad: grad * item.on_device())

    def drop(self, names: Iterable[str]) -> None:
        """Forget the masks of these parameters."""
        for name in list(names):
            self._let_go(self._items.pop(name))

    def release(self) -> None:
        """Mask no gradients any more; the masks can still be read."""
        for item in self._items.values():
            self._let_go(item)

    @staticmethod
    def _let_go(item: HeldMask) -> None:
        if item.hook is not None:
            item.hook.remove()
            item.hook = None

    def zero_(self, parameters: Mapping[str, torch.Tensor] | None = None) -> None:
        """Zero what is masked, in ``parameters`` of the same names or in those that are held."""
        with torch.no_grad():
            for name, item in self._items.items():
                target = item.parameter if parameters is None else parameters[name]
                target.masked_fill_(~item.on_device().to(target.device), 0)

    def take_from_first_rank(self, names: Iterable[str]) -> None:
        """Replace the masks of these parameters by those of rank 0; all ranks must call this with the same names."""
        for name in names:
            item = self._items[name]
            shared = item.on_device().to(torch.uint8)
            distributed.broadcast(shared, src=0)
            item.mask = shared.to(torch.bool)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of all masks on the host."""
        return {name: item.mask.detach().cpu().clone() for name, item in self._items.items()}
