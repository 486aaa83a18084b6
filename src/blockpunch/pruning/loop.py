"""The training loop behind :mod:`blockpunch.pruning.recover`, and all that must be saved to go on with it."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from blockpunch.errors import TrainingError
from blockpunch.pruning import checkpoint as files
from blockpunch.pruning.allocator import memory_kept
from blockpunch.pruning.depthwise import DepthwiseInFloat32
from blockpunch.pruning.diagnosis import first_not_finite, not_compiled, refused
from blockpunch.pruning.objectives import Objective
from blockpunch.pruning.recipe import Recipe
from blockpunch.pruning.torch_prune import Pruner


@dataclass(frozen=True)
class Status:
    """What a progress callback is told after each step."""

    step: int
    steps: int
    epoch: int
    loss: float
    rate: float
    seconds: float
    score: float | None = None
    """The result of ``validate``, right after an epoch."""


@dataclass
class Recovery:
    """What a finished run did: one mean loss and one score (where there is ``validate``) per epoch."""

    steps: int = 0
    seconds: float = 0.0
    resumed: bool = False
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


class Run:
    """One recovery run: the loop, and all that must be saved to go on with it."""

    def __init__(self, pruner: Pruner, loader: Iterable[Any], recipe: Recipe, objective: Objective,
                 checkpoint: str | Path | None, checkpoint_seconds: float, progress: Callable[[Status], None] | None,
                 validate: Callable[[nn.Module], float] | None) -> None:
        if pruner.finished:
            raise TrainingError("the pruner is finalized: its masks hold no more", fix="train before finalize_()")
        self.pruner, self.loader, self.recipe, self.objective = pruner, loader, recipe, objective
        self.path = Path(checkpoint) if checkpoint is not None else None
        self.between, self.progress, self.validate = checkpoint_seconds, progress, validate
        self.model = pruner.model
        self.network = torch.compile(self.model) if recipe.compile else self.model
        self.length = _length(loader)
        self.steps = self.length * recipe.epochs
        if pruner.method is not None and pruner.method.steps > self.steps:
            raise TrainingError(f"the method prunes for {pruner.method.steps} steps, but there are only {self.steps}",
                                fix="give the method fewer steps, or the recipe more epochs")
        self.epoch = self.batch = self.step = 0
        self.total = 0.0  # of this epoch's losses
        self.result = Recovery()
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = recipe.build(self.parameters)
        self.resume_random: tuple[Mapping[str, torch.Tensor], Mapping[str, Any]] | None = None

    def go(self) -> Recovery:
        """Run to the end, from the checkpoint if there is one."""
        if self.pruner.pruned:
            self.pruner.apply_()
        if self.path is not None and self.path.exists():
            self._load(self.path)
        self.started = self.saved = time.monotonic()
        with memory_kept():
            while self.epoch < self.recipe.epochs and not self._out_of_time():
                self._one_epoch()
        self.result.steps, self.result.seconds = self.step, self._seconds()
        self._save()
        self.model.eval()
        if not self.pruner.pruned:
            raise TrainingError(f"the time is over after {self.step} steps, before the network was pruned",
                                fix="give more minutes, or the method fewer steps")
        return self.result

    def _one_epoch(self) -> None:
        self.model.train(not self.recipe.as_used)
        for batch in self._batches():
            loss, rate = self._train(batch), float(self.optimizer.param_groups[0]["lr"])
            self.total, self.batch, self.step = self.total + loss, self.batch + 1, self.step + 1
            if self.progress is not None:
                self.progress(Status(self.step, self.steps, self.epoch, loss, rate, self._seconds()))
            if self._out_of_time():
                break
            if time.monotonic() - self.saved > self.between and self.batch < self.length:
                self._save()
        if self.batch == 0:
            raise TrainingError("the loader gave no batch", where=f"epoch {self.epoch + 1}",
                                fix="give a loader that can be gone through once per epoch, not an iterator")
        self.result.losses.append(self.total / max(self.batch, 1))
        self.epoch, self.batch, self.total = self.epoch + 1, 0, 0.0
        if self.validate is not None:
            self.model.eval()
            self.result.scores.append(float(self.validate(self.model)))
            if self.progress is not None:
                self.progress(Status(self.step, self.steps, self.epoch, self.result.losses[-1], 0.0, self._seconds(),
                                     self.result.scores[-1]))
        if self.epoch < self.recipe.epochs:
            self._save()

    def _batches(self) -> Iterator[Any]:
        """The epoch's batches from ``self.batch`` on, in the order that the epoch's seed gives."""
        _seed(self.recipe.seed * 1_000_003 + self.epoch, self.loader)
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(self.epoch)
        batches = iter(self.loader)
        for _ in range(self.batch):
            if next(batches, None) is None:
                raise TrainingError("the loader gives fewer batches than when the checkpoint was written",
                                    where=f"epoch {self.epoch + 1}", fix="give it the same data and batch size")
        if self.resume_random is not None and self.batch > 0:  # an epoch that begins draws from its own seed
            files.restore_random(*self.resume_random)
        self.resume_random = None
        yield from batches

    def _train(self, batch: Any) -> float:
        """One step; returns its loss."""
        batch = _prepared(batch, self.parameters[0].device, self.recipe.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self._done())
        loss = self._loss(self.network, batch)
        value = float(loss.detach())
        if math.isfinite(value):
            loss.backward()
            if self._clip():
                if not self.pruner.pruned:  # added after the clipping, which is for the data's gradient
                    self.pruner.penalty().backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.pruner.step()
                return value
        where = first_not_finite(self.model, lambda: self._loss(self.model, batch))
        kept = f"; the last good checkpoint is {self.path}" if self.path is not None and self.path.exists() else ""
        raise TrainingError(f"the loss or its gradient is not finite at step {self.step + 1} of {self.steps}{kept}",
                            where=where, fix=f"lower the learning rate (now {self.recipe.peak:g}) or turn bfloat16 off")

    def _clip(self) -> bool:
        """Limit the gradient's norm; False, with the gradients as they were, where it is not finite."""
        try:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip or math.inf, error_if_nonfinite=True)
        except RuntimeError:
            return False
        return True

    def _loss(self, network: Any, batch: Any) -> torch.Tensor:
        kind = self.parameters[0].device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.bfloat16), self._depthwise():
            try:
                return self.objective(network, batch)
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                if isinstance(error, TorchDynamoException):
                    raise not_compiled(error) from error
                raise refused(batch, self.step + 1, error) from error

    def _depthwise(self) -> AbstractContextManager[Any]:
        """Keeps depthwise layers fast under bfloat16; where the network is compiled it would cut it at each call."""
        return nullcontext() if self.recipe.compile else DepthwiseInFloat32()

    def _done(self) -> float:
        done = self.step / self.steps
        return max(done, self._seconds() / (60 * self.recipe.minutes)) if self.recipe.minutes else done

    def _out_of_time(self) -> bool:
        return self.recipe.minutes is not None and self._seconds() >= 60 * self.recipe.minutes

    def _seconds(self) -> float:
        return self.result.seconds + time.monotonic() - self.started

    def _save(self) -> None:
        """Write a checkpoint, unless some weight is no longer finite: the last good one stays then."""
        if self.path is None or not all(bool(p.isfinite().all()) for p in self.parameters):
            return
        generator, generator_state = files.random_state()
        optimizer, optimizer_state = files.flatten_optimizer(self.optimizer.state_dict())
        groups = {"model": self.model.state_dict(), "mask": self.pruner.state_dict(), "random": generator,
                  "optimizer": optimizer}
        tensors = {f"{group}/{name}": tensor for group, items in groups.items() for name, tensor in items.items()}
        files.save(self.path, tensors, {
            "run": self._fingerprint(), "epoch": self.epoch, "batch": self.batch, "step": self.step,
            "total": self.total, "seconds": self._seconds(), "losses": self.result.losses,
            "scores": self.result.scores, "random": generator_state, "optimizer": optimizer_state})
        self.saved = time.monotonic()

    def _load(self, path: Path) -> None:
        tensors, state = files.load(path)
        wanted = self._fingerprint()
        other = [name for name in wanted if state["run"].get(name) != wanted[name]]
        if other:
            raise TrainingError(f"the checkpoint is of another run: {', '.join(other)} differ", where=str(path),
                                fix="use the settings that it was made with, or remove the file to start anew")
        groups: dict[str, dict[str, torch.Tensor]] = {"model": {}, "mask": {}, "random": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.model.load_state_dict(groups["model"])
        self.pruner.load_state_dict(groups["mask"])
        self.optimizer.load_state_dict(files.unflatten_optimizer(groups["optimizer"], state["optimizer"]))
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.total, self.resume_random = state["total"], (groups["random"], state["random"])
        self.result = Recovery(self.step, state["seconds"], True, state["losses"], state["scores"])

    def _fingerprint(self) -> dict[str, Any]:
        """What tells this run from another one."""
        shapes = {name: list(tensor.shape) for name, tensor in self.model.state_dict().items()}
        digests = {"plan": self.pruner.plan.to_json(), "method": repr(self.pruner.method), "model": repr(shapes)}
        return {**self.recipe.fingerprint(), "batches": self.length, "objective": type(self.objective).__name__,
                **{name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in digests.items()}}


def _length(loader: Iterable[Any]) -> int:
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise TrainingError("the loader has no length, so the schedule cannot be planned",
                            fix="give it a __len__: batches per epoch") from error
    if length < 1:
        raise TrainingError("the loader is empty", fix="check the images, or lower the batch size")
    return length


def _seed(seed: int, loader: Iterable[Any]) -> None:
    """Seed the global generators, and those that a DataLoader or its sampler holds."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the user's loader may draw from it
    random.seed(seed)
    for owner in (loader, getattr(loader, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _prepared(batch: Any, device: torch.device, channels_last: bool) -> Any:
    """The batch on the model's device, images in the model's memory format."""
    if isinstance(batch, tuple | list):
        return type(batch)(_prepared(item, device, channels_last) for item in batch)
    if not isinstance(batch, torch.Tensor):
        return batch
    layout = torch.channels_last if channels_last and batch.ndim == 4 else torch.preserve_format
    return batch.to(device, memory_format=layout)
