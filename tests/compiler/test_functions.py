"""The generated elementary functions against float64: as exact as their comments say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from emulation import EMULATED, runs
from harness import Bundle, Native

from blockpunch.compiler import compile_graph
from blockpunch.target import Target

X = np.concatenate([np.linspace(-80, 80, 40001), np.linspace(-1, 1, 2001)]).astype(np.float32)
EXACT = {"Sigmoid": lambda x: 1 / (1 + np.exp(-x)), "Silu": lambda x: x / (1 + np.exp(-x)), "Tanh": np.tanh,
         "Exp": np.exp, "Gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
         "Sin": np.sin, "Cos": np.cos}


@pytest.mark.parametrize("target", ["host", *EMULATED, "x86-64-v3"])
def test_error_stays_below_the_bound(target: str) -> None:
    core = Target.named(target)
    if not runs(core):
        pytest.skip("not on this CPU")
    b = Bundle()
    x = b.input(len(X))
    for op in EXACT:
        b.output(b.node(op, x, **({"approximate": "none"} if op == "Gelu" else {})))
    outputs = Native(compile_graph(b.graph, core), core).run([X])
    for (op, exact), y in zip(EXACT.items(), outputs, strict=True):
        right = exact(X.astype(np.float64))
        # Exp: relative; the others saturate, so that small errors are relative to 1, and to x for Silu and Gelu
        scale = np.abs(right) if op == "Exp" else np.maximum(np.abs(X), 1) if op in ("Silu", "Gelu") else 1
        assert np.max(np.abs(y - right) / scale) < 4e-7, op
