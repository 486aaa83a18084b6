"""Every way to run a convolution computes the same: whatever the model or a measurement picks is right."""

from __future__ import annotations

import re

import conv_cases
import numpy as np
import pytest
from harness import Bundle, check, fused

from blockpunch.compiler import Choice, compile_graph, schedule
from blockpunch.compiler.forms import FORMS, rows
from blockpunch.target import Target

ROUNDS = 7


@pytest.mark.parametrize("target", ["host", "x86-64-v3"])
def test_every_choice_is_right(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_WORST", 1e9)  # also those that the model finds slow
    bundle, chosen = conv_cases.layers(), Target.named(target)
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
    narrow = set() if chosen.isa == "avx512" else {"winograd-tiles"}  # a form that needs vectors of 16 floats
    assert {c.form for c in seen} == set(FORMS) - narrow and {c.grouped for c in seen} == {False, True}


def _unlike(choices: tuple[Choice, ...], seen: set[Choice], seed: int) -> Choice:
    """A choice whose kernel was seen least so far."""
    kernels = [(c.form, c.height) for c in seen]
    order = np.random.default_rng(seed).permutation(len(choices))
    return min((choices[i] for i in order), key=lambda c: kernels.count((c.form, c.height)))


@pytest.mark.parametrize("stride", [1, 2])
def test_maps_beyond_the_cache_are_fetched_ahead(stride: int) -> None:
    target = Target.named("x86-64-v3")
    if not target.runs_here()[0]:
        pytest.skip("not on this CPU")
    b = Bundle(5)
    x = b.value(1, 16, 73, 91)
    keep = np.repeat(b.rng.random((16, 16, 3, 3)) < 0.2, 8, axis=0)
    b.output(b.conv(x, b.weights(128, 16, 3, 3, keep=keep), pads=(1, 1, 1, 1), stride=(stride, stride)))
    program = check(b, target, flags=("-O1",))
    assert "L->in_plane + L->reach" in program.source["model.c"]


@pytest.mark.parametrize("stride", [1, 2])
def test_sums_wait_between_slices_of_the_channels(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros without structure: parts of filters, slices of channels, a residual, a last block that is smaller."""
    monkeypatch.setattr(schedule, "_WORST", 1e9)
    monkeypatch.setattr(rows, "_PART", 4)  # parts already where filters are few
    b = Bundle(11)
    x = b.value(2, 21, 10, 7)
    w = b.weights(23, 21, 3, 3, keep=b.rng.random((23, 21, 3, 3)) < 0.2)
    residual = b.value(2, 23, 10 // stride, -(-7 // stride))
    b.output(b.conv(x, w, pads=(1, 1, 1, 1), stride=(stride, stride), epilogue=(fused("Add", 3), fused("Relu")),
                    operands=(residual,)))
    target = Target.host()
    options = compile_graph(b.graph, target).options
    name, item = next((name, item) for name, item in options.items() if "rows" in {c.form for c in item.choices})
    own = [choice for choice in item.choices if choice.form == "rows"]
    assert {choice.chunk for choice in own} == {6, 11, 21}
    for choice in {(c.height, c.chunk < 21): c for c in own}.values():
        program = check(b, target, flags=("-O1",), choices={name: choice})
        assert program.options[name].chosen == choice


@pytest.mark.parametrize(("channels", "side", "kernel", "bits", "vectors"), [
    (5, 12, 3, 16, False), (5, 12, 1, 16, True), (21, 60, 3, 32, False), (21, 60, 1, 16, True)])
def test_columns_are_as_narrow_as_their_reach(channels: int, side: int, kernel: int, bits: int, vectors: bool,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros without structure: distances in 16 bits where they fit, by whole vectors where all are such."""
    monkeypatch.setattr(schedule, "_WORST", 1e9)
    b, target = Bundle(3), Target.host()
    x = b.value(1, channels, side, side)
    w = b.weights(19, channels, kernel, kernel, keep=b.rng.random((19, channels, kernel, kernel)) < 0.2)
    b.output(b.conv(x, w, pads=(kernel // 2,) * 4))
    (name, item), = compile_graph(b.graph, target).options.items()
    own = [choice for choice in item.choices if choice.form == "rows" and choice.chunk == channels]
    assert own
    for choice in {c.height: c for c in own}.values():
        program = check(b, target, flags=("-O1",), choices={name: choice})
        found = re.search(r"_columns(\d+)(_by\d+)?", program.source["model.c"])
        assert found and (int(found[1]), bool(found[2])) == (bits, vectors)
