"""Choosing how a convolution runs: every form offers its schedules with their modelled cycles, the fewest win."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from blockpunch.compiler.forms import FORMS
from blockpunch.compiler.forms.base import Layer, Schedule

_WORST = 1.6  # schedules that the model finds this much slower than its best are not options


class Schedules:
    """The schedules of one network's convolutions. To look for them takes long: each is looked for once."""

    def __init__(self) -> None:
        self._options: dict[Hashable, list[Schedule]] = {}
        self._dense_cycles: dict[Hashable, float] = {}

    def options(self, layer: Layer) -> list[Schedule]:
        """Every schedule worth comparing, the best by the model first."""
        key = layer.node.name, _geometry(layer)
        if key not in self._options:
            self._options[key] = _options(layer)
        return self._options[key]

    def dense_cycles(self, layer: Layer) -> float:
        """Modelled cycles of the layer if it had no zeros."""
        key = _geometry(layer)
        if key not in self._dense_cycles:
            self._dense_cycles[key] = _options(replace(layer, weights=np.ones_like(layer.weights)))[0].cycles
        return self._dense_cycles[key]


def _options(layer: Layer) -> list[Schedule]:
    forms = [form for form in FORMS.values() if not (layer.shifts and form.needs_sides)]
    found = [schedule for form in forms for schedule in form.schedules(layer)]
    found.sort(key=lambda s: s.cycles)  # stable: the plainest first among equals
    return [s for s in found if s.cycles <= _WORST * found[0].cycles]


def _geometry(layer: Layer) -> Hashable:
    """All that its schedules depend on, but its zeros, the target and the threads."""
    places = [(view.shape, view.strides, view.plane) for view in (layer.x, layer.y)]
    return layer.weights.shape, tuple(layer.node.attrs["taps"]), *places
