"""Every way to run a convolution computes the same: whatever the model or a measurement picks is right."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import masks, same
from harness import Bundle, check, fused

from blockpunch.compiler import Choice, compile_graph, schedule
from blockpunch.target import Target

ROUNDS = 7


def layers() -> Bundle:
    """Layers that together allow every form, height and tile: wide and narrow maps, zeros, margins, operands."""
    b = Bundle(61)

    def add(filters: int, channels: int, kernel: int, size: tuple[int, int], *, batch: int = 1, keep: int | None = None,
            stride: int = 1, reader: bool = False, operand: bool = False) -> None:
        shape = (kernel, kernel)
        mask = None if keep is None else masks(b.rng, filters, channels, shape)[keep]
        w = b.weights(filters, channels, *shape, keep=mask)
        plain = b.conv(b.value(batch, channels, *size), w, pads=same(shape), stride=(stride, stride))
        epilogue = [fused("Add", 3), fused("Relu")] if operand else [fused("Silu")]
        y = b.conv(b.value(batch, channels, *size), w, pads=same(shape), stride=(stride, stride), epilogue=epilogue,
                   operands=[b.value(*b.graph.shape(plain))] if operand else [])
        b.output(y, *([b.conv(y, b.weights(1, filters, 3, 3), pads=(1, 1, 1, 1))] if reader else []))

    add(32, 6, 3, (7, 7), keep=5, reader=True, operand=True)
    add(64, 9, 1, (5, 3), batch=2)
    add(48, 7, 3, (14, 13), keep=4, stride=2, reader=True)
    add(35, 8, 1, (9, 40), keep=3, operand=True)
    add(16, 5, 3, (30, 33), keep=6, batch=2)
    add(33, 4, 3, (2, 2), keep=2, reader=True)
    return b


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
def test_every_choice_is_right(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_WORST", 1e9)  # also those that the model finds slow
    bundle, chosen = layers(), Target.named(target)
    if not chosen.runs_here()[0]:
        pytest.skip("not on this CPU")
    options = compile_graph(bundle.graph, chosen, threads_hint=2).options
    seen: set[Choice] = set()
    for i in range(ROUNDS):
        choices = {name: _unlike(item.choices, seen, i) for name, item in options.items()}
        seen |= set(choices.values())
        program = check(bundle, chosen, flags=("-O1",), threads_hint=2, choices=choices)
        assert {name: item.chosen for name, item in program.options.items()} == choices
    every = {(c.form, c.height) for item in options.values() for c in item.choices}
    assert {(c.form, c.height) for c in seen} == every
    assert {c.form for c in seen} == {"pixels", "filters"} and {c.grouped for c in seen} == {False, True}


def _unlike(choices: tuple[Choice, ...], seen: set[Choice], seed: int) -> Choice:
    """A choice whose kernel was seen least so far."""
    kernels = [(c.form, c.height) for c in seen]
    order = np.random.default_rng(seed).permutation(len(choices))
    return min((choices[i] for i in order), key=lambda c: kernels.count((c.form, c.height)))
