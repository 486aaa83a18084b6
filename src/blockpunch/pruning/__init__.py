"""Pruning: masks, one-shot on ONNX files, and recovery by training.

:mod:`~blockpunch.pruning.onnx_prune` needs onnx; :class:`Pruner` and :mod:`~blockpunch.pruning.recover` need torch.
Names are imported on first use, so that pruning an ONNX file does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockpunch.pruning.allocate import rated
    from blockpunch.pruning.counts import LayerCount, PruneReport
    from blockpunch.pruning.gradual import Gradual
    from blockpunch.pruning.oneshot import OneShot, prune_oneshot_
    from blockpunch.pruning.onnx_oneshot import prune_oneshot_onnx
    from blockpunch.pruning.onnx_prune import onnx_layers, prune_onnx
    from blockpunch.pruning.reweighted import Reweighted
    from blockpunch.pruning.torch_prune import Pruner, module_layers

__all__ = ["Gradual", "LayerCount", "OneShot", "PruneReport", "Pruner", "Reweighted", "module_layers", "onnx_layers",
           "prune_oneshot_", "prune_oneshot_onnx", "prune_onnx", "rated"]

_HOME = {"Gradual": "gradual", "LayerCount": "counts", "OneShot": "oneshot", "PruneReport": "counts",
         "Pruner": "torch_prune", "Reweighted": "reweighted", "module_layers": "torch_prune",
         "onnx_layers": "onnx_prune", "prune_oneshot_": "oneshot", "prune_oneshot_onnx": "onnx_oneshot",
         "prune_onnx": "onnx_prune", "rated": "allocate"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
