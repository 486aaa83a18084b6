"""How a pruned network is trained back: optimizer, schedule, budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from blockpunch.errors import TrainingError
from blockpunch.target import host_features


def fast_bfloat16(device: str | torch.device) -> bool:
    """Whether training in bfloat16 is faster than in float32 there; a CPU without instructions for it is far slower."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool({"avx512_bf16", "amx_bf16"} & set(host_features() or ()))


@dataclass(frozen=True)
class Recipe:
    """Settings of a recovery run; the defaults suit a trained CNN pruned in one shot.

    Args:
        epochs: passes over the loader.
        lr: learning rate at the end of the warm-up; it falls to zero along a cosine. None: 0.02 for sgd, 5e-4 for adam.
        optimizer: 'sgd' (momentum 0.9, Nesterov) or 'adam' (AdamW).
        weight_decay: on weights of layers only, never on biases and batch-norms.
        warmup_steps: steps in which the rate rises from zero.
        clip: largest norm of the gradient; 0 turns clipping off.
        minutes: wall-clock budget. The cosine then follows the time too, so that it ends when the time does; such a run
            is not exactly repeatable.
        bfloat16: run the forward pass under autocast (weights stay float32).
        channels_last: memory format of images and weights; usually faster on CPUs.
        compile: compile the network by ``torch.compile``: minutes before the first step, then faster steps. Not with
            outputs of layers to compare; nothing for depthwise layers in bfloat16 on a CPU, which are slow then.
        as_used: run the network in the mode it is used in: batch-norms on their stored statistics, no dropout. Right
            for few images or small batches, where it is to come back to what it was.
        seed: of data order and augmentation; each epoch starts from a seed of its own.
    """

    epochs: int = 10
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    clip: float = 5.0
    minutes: float | None = None
    bfloat16: bool = False
    channels_last: bool = True
    compile: bool = False
    as_used: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("momentum", 0), ("weight_decay", 0), ("warmup_steps", 0), ("clip", 0)):
            value = getattr(self, name)
            if not math.isfinite(value) or value < least:
                raise TrainingError(f"{name} must be at least {least}, not {value}")
        for name in ("lr", "minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise TrainingError(f"{name} must be above 0, not {value}")
        if self.optimizer not in ("sgd", "adam"):
            raise TrainingError(f"unknown optimizer '{self.optimizer}'", fix="choose 'sgd' or 'adam'")

    @property
    def peak(self) -> float:
        """Learning rate after the warm-up."""
        return self.lr if self.lr is not None else {"sgd": 0.02, "adam": 5e-4}[self.optimizer]

    def rate(self, step: int, done: float) -> float:
        """Learning rate of step ``step`` (from 0) when the share ``done`` (0 to 1) of the run is behind."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        return self.peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer; parameters of one dimension (biases, batch-norms) do not decay."""
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if not trainable:
            raise TrainingError("the model has no parameters to train", fix="set requires_grad on its weights")
        groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay},
                  {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adam":
            return torch.optim.AdamW(groups, lr=self.peak)
        return torch.optim.SGD(groups, lr=self.peak, momentum=self.momentum, nesterov=self.momentum > 0)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued."""
        return asdict(self)
