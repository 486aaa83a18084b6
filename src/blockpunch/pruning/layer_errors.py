"""How much each layer's output, and the network's answer, would suffer from each scheme and rate.

One dense pass over the images gives the second moments of every layer's inputs; each candidate is then pruned on its
own, inputs from the dense network, with the same solver as :mod:`blockpunch.pruning.oneshot` (fewer steps), and judged
on images that it was not fitted to. Its cost is what the network's answer feels of the change
(:mod:`blockpunch.pruning.gradients`): the sum of costs stands in for the loss of accuracy where a plan is searched for,
and nothing is trained.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from blockpunch.atomic import write_text
from blockpunch.errors import DataError, SelectorError
from blockpunch.plan import Layer
from blockpunch.pruning.allocator import memory_kept
from blockpunch.pruning.gradients import Gradients, gradients, kept
from blockpunch.pruning.hessian import Moments, grouped, input_columns, positions
from blockpunch.pruning.looking import images_in, shared, unfit
from blockpunch.pruning.means import MeansWatched, held_out, unpooled
from blockpunch.pruning.norms import norms_behind
from blockpunch.pruning.objectives import images_of
from blockpunch.pruning.obs import LayerPruner
from blockpunch.pruning.torch_prune import module_layers
from blockpunch.schemes import Scheme

FORMAT = "blockpunch-layer-errors"
VERSION = 6
STEPS = 8
"""Steps of the search for a mask: a proxy needs no more."""
MEMORY = 1.5e9
"""Bytes of moments and gradients held at once; more layers than fit take other passes over the images."""

Candidate = tuple[Scheme | str, float]
Flags = npt.NDArray[np.bool_]
Progress = Callable[[int, int, str], None]


@dataclass
class LayerErrors:
    """``errors[layer][(scheme, rate)]``: squared error of the layer's output over its energy (0: none, 1: all lost).

    ``scheme`` is text such as ``"block-punched:8x4"``. ``costs[layer][(scheme, rate)]``: how far that candidate moves
    the network's answer; only ratios mean something, and the sum over the layers stands for the network's loss.
    ``alive[layer][(scheme, rate)]``: which filters and which input channels still have weights (all channels count,
    where the layer is grouped). ``skipped`` says why layers have no errors; ``source`` tells the model and images from
    others.
    """

    errors: dict[str, dict[tuple[str, float], float]] = field(default_factory=dict)
    costs: dict[str, dict[tuple[str, float], float]] = field(default_factory=dict)
    alive: dict[str, dict[tuple[str, float], tuple[Flags, Flags]]] = field(default_factory=dict, compare=False)
    skipped: dict[str, str] = field(default_factory=dict)
    source: str = ""

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all (:class:`OutputError` if it cannot be)."""
        layers = {name: [[*cell, error, self.costs[name][cell], *map(_bits, self.alive.get(name, {}).get(cell, ()))]
                         for cell, error in table.items()] for name, table in self.errors.items()}
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(table)}" for name, table in layers.items())
        head = {"format": FORMAT, "version": VERSION, "source": self.source, "skipped": self.skipped}
        write_text(path, json.dumps(head)[:-1] + f', "layers": {{\n{rows}\n}}}}\n')

    @classmethod
    def load(cls, path: str | Path) -> LayerErrors:
        """The errors in a JSON file.

        Raises:
            DataError: no such file, or not what :meth:`save` writes.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if (data["format"], data["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{data['format']} of version {data['version']}")
            found = cls(skipped=dict(data["skipped"]), source=str(data["source"]))
            for name, rows in data["layers"].items():
                found.errors[name], found.costs[name] = {}, {}
                for scheme, rate, error, cost, *bits in rows:
                    cell = str(scheme), float(rate)
                    found.errors[name][cell], found.costs[name][cell] = float(error), float(cost)
                    if bits:
                        found.alive.setdefault(name, {})[cell] = _flags(bits[0]), _flags(bits[1])
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"no table of layer errors ({error})", where=str(path),
                            fix="remove the file; it is computed anew") from error


@memory_kept()
def layer_errors(model: nn.Module, batches: Iterable[Any], candidates: Mapping[str, Sequence[Candidate]], *,
                 store: str | Path | None = None, seed: int = 0, progress: Progress | None = None) -> LayerErrors:
    """The error of each layer by itself for each of its candidates; the model is left as it is.

    Args:
        model: dense.
        batches: a few hundred unlabelled images, as for :func:`blockpunch.pruning.oneshot.prune_oneshot_`.
        candidates: layer (as :func:`module_layers` names them) -> schemes and rates.
        store: a JSON file that is written after each layer; what it already holds is not computed again.
        seed: of the choice of output positions.
        progress: called after each layer with (done, all, name).

    Raises:
        DataError: no images, images that the model cannot take, or a store of another model or other images.
        SelectorError: a candidate for a layer that the model does not have.
    """
    layers = {layer.name: layer for layer in module_layers(model)}
    if unknown := [name for name in candidates if name not in layers]:
        raise SelectorError(f"no layer '{unknown[0]}'", fix="candidates are keyed by the names of module_layers()")
    images = [images_of(batch) for batch in batches]
    calls = images_in(model, images, layers.values())
    norms = norms_behind(model, images[0][:1])
    result = _begun(store, _source(model, images, seed))
    twins = shared(model, layers.values())
    result.skipped |= {name: reason for name in candidates
                       if (reason := unfit(model.get_submodule(name), calls[name], twins.get(name)))}
    wanted = {name: [(scheme, rate) for scheme, rate in rows if (str(scheme), rate) not in result.errors.get(name, {})]
              for name, rows in _parsed(candidates) if name not in result.skipped}
    missing = [layers[name] for name, rows in wanted.items() if rows]
    done = len(candidates) - len(missing)
    for name, seen in _moments(model, images, missing, norms, seed):
        for moments in (seen.judge, *seen.fitted):
            moments.check(name)
        _judge(result, layers[name], seen, wanted[name])
        done += 1
        if store is not None:
            result.save(store)
        if progress is not None:
            progress(done, len(candidates), name)
    result.errors, result.costs = ({name: tables[name] for name in layers if name in tables}  # in the network's order
                                   for tables in (result.errors, result.costs))
    return result


def _judge(result: LayerErrors, layer: Layer, seen: _Seen, candidates: Sequence[tuple[Scheme, float]]) -> None:
    """Prune a layer by each of its candidates, and note what comes of it."""
    errors, costs = (table.setdefault(layer.name, {}) for table in (result.errors, result.costs))
    alive = result.alive.setdefault(layer.name, {})
    pruners = [LayerPruner(moments, layer.shape, layer.conv_groups, steps=STEPS) for moments in seen.fitted]
    for scheme, rate in candidates:
        cell = str(scheme), float(rate)
        if rate == 1:
            errors[cell] = costs[cell] = 0.0
            continue
        weights = [pruner.prune(scheme, rate).weight.reshape(seen.judge.weight.shape) for pruner in pruners]
        error, weight = min(((seen.judge.error(weight), weight) for weight in weights), key=lambda pair: pair[0])
        errors[cell], costs[cell], alive[cell] = error, seen.cost(weight, error), _alive(weight, layer)


def _parsed(candidates: Mapping[str, Sequence[Candidate]]) -> Iterator[tuple[str, list[tuple[Scheme, float]]]]:
    for name, rows in candidates.items():
        yield name, [(Scheme.parse(scheme) if isinstance(scheme, str) else scheme, float(rate))
                     for scheme, rate in rows]


def _alive(weight: torch.Tensor, layer: Layer) -> tuple[Flags, Flags]:
    """Which filters and which input channels have weights."""
    used = weight.reshape(*layer.shape[:2], -1).any(2)
    channels = used.any(0) if layer.conv_groups == 1 else torch.ones(layer.shape[1], dtype=torch.bool)
    return used.any(1).cpu().numpy(), channels.cpu().numpy()


def _bits(flags: Flags) -> str:
    """Flags as text: their number, and bits in hexadecimal digits."""
    return f"{len(flags)}:{np.packbits(flags).tobytes().hex()}"


def _flags(text: str) -> Flags:
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=int(count)).astype(np.bool_)


def _begun(store: str | Path | None, source: str) -> LayerErrors:
    if store is None or not Path(store).exists():
        return LayerErrors(source=source)
    found = LayerErrors.load(store)
    if found.source != source:
        raise DataError("these errors are of another model or of other images", where=str(store),
                        fix="name another file, or remove this one")
    return found


def _source(model: nn.Module, images: Sequence[torch.Tensor], seed: int) -> str:
    digest = hashlib.sha256(f"{seed} {STEPS}".encode())
    for tensor in [*model.state_dict().values(), *images]:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim
                      else repr(tensor.item()).encode())
    return digest.hexdigest()[:16]


def _moments(model: nn.Module, images: Sequence[torch.Tensor], layers: Sequence[Layer],
             norms: Mapping[str, list[nn.Module]], seed: int) -> Iterator[tuple[str, _Seen]]:
    """Moments of the inputs of each layer in the dense network, as many layers at a time as fit into memory."""
    remaining, count = list(layers), sum(len(batch) for batch in images)
    training = {module: module.training for module in model.modules()}
    while remaining:
        group: list[Layer] = []
        size = 0.0
        while remaining and (not group or size + _bytes(remaining[0], count) <= MEMORY):
            size += _bytes(remaining[0], count)
            group.append(remaining.pop(0))
        found = {}
        for layer in group:
            module = model.get_submodule(layer.name)
            found[layer.name] = _Seen(module, module.bias is not None or layer.name in norms, count, seed)
        try:
            model.eval()
            _watch(model, images, found)
            for name, of_layer in gradients(model, images, list(found), seed).items():
                found[name].gradients = of_layer
        finally:
            for module, mode in training.items():
                module.training = mode
        for name in list(found):
            yield name, found.pop(name)


def _watch(model: nn.Module, images: Sequence[torch.Tensor], hooks: Mapping[str, _Seen]) -> None:
    """Run all images through the model, with hooks that see the inputs of layers."""
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
    try:
        with torch.no_grad(), MeansWatched():
            for batch in images:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()


class _Seen:
    """A hook that gathers the moments of a layer's inputs.

    Attributes:
        fitted: those to fit to, and for a layer behind a global mean those of the map, too.
        others: those of every so many-th image, which are not in the first (:func:`held_out`); none, of few images.
        gradients: what the answer feels of changes.
    """

    def __init__(self, module: nn.Module, centred: bool, count: int, seed: int) -> None:
        self.module = module
        self.others = Moments(grouped(module), centred=centred)
        self.fitted = [Moments(grouped(module), centred=centred)]
        self.most, self.count, self.rows = positions(module, count), count, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.gradients: Gradients

    @property
    def judge(self) -> Moments:
        """What weights are judged on: the others, where there are any."""
        return self.others if self.others.count else self.fitted[0]

    def cost(self, weight: torch.Tensor, error: float) -> float:
        """Of a weight: what the answer feels of it, where it is as far off as on the images that ``error`` is from.

        Gradients are those of all images, weights fit most of them, a classifier's far too well where they are few.
        """
        felt = self.gradients.cost(weight, self.judge.mean_shift(weight))
        others = self.others.count / (self.others.count + self.fitted[0].count)
        seen = others * error + (1 - others) * self.fitted[0].error(weight)
        return felt * error / seen if seen > 0 else 0.0

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        held = held_out(self.rows, x, self.count)
        self.rows += len(x)
        self._take(self.others, x[held])
        self._take(self.fitted[0], x[~held])
        before = unpooled(module, x, self.count)
        if before is not x:
            if len(self.fitted) == 1:
                self.fitted.append(Moments(grouped(module), centred=self.others.centred))
            self._take(self.fitted[1], before[~held])

    def _take(self, moments: Moments, x: torch.Tensor) -> None:
        if len(x):
            moments.add(input_columns(self.module, x.float(), self.generator, self.most))


def _bytes(layer: Layer, images: int) -> float:
    """Of the two moments and the gradients that are held of a layer, at most."""
    columns = layer.weights // layer.shape[0]
    return 4.0 * (2 * layer.conv_groups * columns**2 + min(images, kept(layer.weights)) * layer.weights)
