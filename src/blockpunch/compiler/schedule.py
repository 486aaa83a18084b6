"""Choosing how a convolution runs: every form offers its schedules with their modelled cycles, the fewest win."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from blockpunch.compiler.forms import FORMS
from blockpunch.compiler.forms.base import Layer, Schedule

_WORST = 1.6  # schedules that the model finds this much slower than its best are not options


def options(layer: Layer) -> list[Schedule]:
    """Every schedule worth comparing, the best by the model first."""
    forms = [form for form in FORMS.values() if not (layer.shifts and form.needs_sides)]
    found = [schedule for form in forms for schedule in form.schedules(layer)]
    found.sort(key=lambda s: s.cycles)  # stable: the plainest first among equals
    return [s for s in found if s.cycles <= _WORST * found[0].cycles]


def dense_cycles(layer: Layer) -> float:
    """Modelled cycles of the layer if it had no zeros."""
    return options(replace(layer, weights=np.ones_like(layer.weights)))[0].cycles
