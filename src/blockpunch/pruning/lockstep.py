"""A network stopped before each of its layers on many batches at once, so that a layer can be changed before it runs.

Layer-wise pruning has to see the inputs that the already pruned layers before it produce. Running the network anew for
every layer costs (layers)^2 / 2; cutting it into pieces needs a graph. Here every batch runs in a thread of its own,
which stops in a hook before each layer; when all batches have stopped the layer is changed, and all go on. That is one
forward pass in all, of any torch module, and only tensors that are still needed are held. One thread runs at a time.

The first layers of most networks have the largest maps, and the most samples per image: there a part of the batches is
enough. The others start later, through the layers that are already changed, when what they hold fits into memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from blockpunch.errors import ModelError
from blockpunch.pruning.means import MeansWatched

MEMORY = 2e9
"""Bytes of activations that all runs together should hold."""
FEWEST = 64
"""Images that run from the start in any case."""
HELD = 3
"""Tensors of the size of a layer's input that a run holds about there: input, shortcut, output."""

_current = threading.local()


class _Stopped(BaseException):
    """Unwinds a run that is not wanted any more."""


class _Run:
    """A model on one batch, in a thread of its own that only runs inside :meth:`advance`."""

    def __init__(self, model: nn.Module, images: Any) -> None:
        self.layer: str | None = None
        self.input: torch.Tensor | None = None
        self._error: BaseException | None = None
        self._stop = False
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, args=(model, images), daemon=True)

    def _work(self, model: nn.Module, images: Any) -> None:
        self._go.acquire()
        _current.run = self
        try:
            if not self._stop:
                with torch.no_grad(), MeansWatched():
                    model(images)
        except BaseException as error:  # told to the caller of advance(), whatever it is
            self._error = error
        self.layer = self.input = None
        self._paused.release()

    def stop_before(self, layer: str, x: torch.Tensor) -> None:
        """Called by the hooks, in the run's own thread."""
        self.layer, self.input = layer, x
        self._paused.release()
        self._go.acquire()
        self.input = None
        if self._stop:
            raise _Stopped

    def advance(self) -> None:
        """Run on, to the next layer or to the end, where ``layer`` is None."""
        if not self._thread.ident:
            self._thread.start()
        self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread, wherever it is."""
        self._stop = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()


@contextmanager
def stops(models: Sequence[nn.Module], batches: Sequence[Any],
          layers: Sequence[str]) -> Iterator[Iterator[tuple[str, list[tuple[torch.Tensor, ...]]]]]:
    """Gives ``(layer, inputs)`` for each stop: ``inputs[i][j]`` is what ``models[j]`` feeds the layer of batch ``i``.

    All models run on the same batches and are stopped at the same layers. What the caller changes in a layer takes
    effect at once, for all batches. A layer that is called twice is stopped at twice.

    Args:
        models: with modules of the same names; they should be in eval mode.
        batches: inputs of the models; they are all held, with the tensors that are still needed of each run.
        layers: module paths to stop before.

    Raises:
        ModelError: the order of layers depends on the images.
    """
    hooks = []
    runs = [[_Run(model, images) for model in models] for images in batches]
    try:
        for model in models:
            modules = dict(model.named_modules())
            for name in layers:
                hooks.append(modules[name].register_forward_pre_hook(
                    lambda _, inputs, name=name: _current.run.stop_before(name, inputs[0])))
        yield _stops(runs, [len(batch) for batch in batches], _room(models, batches[0][:1], layers))
    finally:
        for run in (run for group in runs for run in group):
            run.close()
        for hook in hooks:
            hook.remove()


def _room(models: Sequence[nn.Module], image: torch.Tensor, layers: Sequence[str]) -> list[float]:
    """For each stop, how many images fit into memory from there on."""
    run, sizes = _Run(models[0], image), []
    try:
        run.advance()
        while run.input is not None:
            sizes.append(run.input.nbytes)
            run.advance()
    finally:
        run.close()
    return [MEMORY / (HELD * len(models) * max(sizes[index:])) for index in range(len(sizes))]


def _stops(runs: list[list[_Run]], counts: list[int],
           room: list[float]) -> Iterator[tuple[str, list[tuple[torch.Tensor, ...]]]]:
    started = 0
    for stop in range(len(room) + 1):
        for run in (run for group in runs[:started] for run in group):
            run.advance()
        while stop < len(room) and started < len(runs) and sum(counts[:started + 1]) <= max(
                room[stop], FEWEST, counts[0]):
            for run in runs[started]:  # through the layers that are already changed, to this one
                for _ in range(stop + 1):
                    run.advance()
            started += 1
        reached = {run.layer for group in runs[:started] for run in group}
        if len(reached) > 1:
            raise ModelError("its layers run in an order that depends on the images",
                             fix="one-shot pruning needs networks without such branches")
        layer = reached.pop() if reached else None
        if layer is None:
            return
        inputs = [tuple(run.input for run in group if run.input is not None) for group in runs[:started]]
        yield layer, inputs
        del inputs
