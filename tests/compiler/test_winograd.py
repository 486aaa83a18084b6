"""Winograd convolutions: every tile, part and chunk on maps of all sizes, and where the model takes them."""

from __future__ import annotations

import re

import neon
import numpy as np
import pytest
from emulation import runs
from harness import Bundle, check, differences, fused, scratch_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockpunch.compiler import Choice, Options, compile_graph, schedule
from blockpunch.graph import interpreter
from blockpunch.target import Target

ROUNDS = 3


@pytest.fixture(autouse=True)
def every_schedule_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_WORST", 1e9)


def maps() -> Bundle:
    """Prime maps, maps of one tile, batches, pads of 0 to 2, channels and filters that fill no vector, operands."""
    b = Bundle(71)
    for n, c, h, w, f, pad in ((1, 16, 8, 8, 16, 1), (1, 24, 14, 13, 40, 1), (2, 37, 7, 9, 65, 1), (1, 5, 13, 11, 6, 1),
                               (1, 20, 12, 12, 64, 0), (3, 9, 4, 5, 33, 1), (1, 4, 2, 3, 16, 1), (1, 7, 17, 19, 48, 2),
                               (2, 3, 33, 18, 27, 1)):
        x = b.value(n, c, h, w)
        r = b.value(n, f, h + 2 * pad - 2, w + 2 * pad - 2)
        y = b.conv(x, b.weights(f, c, 3, 3), pads=(pad,) * 4, epilogue=[fused("Add", 3), fused("Relu")], operands=[r])
        b.output(y, b.conv(x, b.weights(f, c, 3, 3), pads=(pad, pad, pad, 0), bias=False, epilogue=[fused("Silu")]),
                 b.conv(y, b.weights(8, f, 3, 3), pads=(1, 1, 1, 1)))
    for sides in (((6, 2), (5, 2), (6, 1)), ((7, 3), (8, 2))):  # strided kernels: 3x3 or 4x4 over the phases of x
        x = b.value(2, 3, 41, 38)
        for side, pad in sides:
            b.output(b.conv(x, b.weights(10, 3, side, side), stride=(2, 2), pads=(pad,) * 4))
    x = b.value(1, 18, 13, 11)
    for side in (4, 5, 6, 7):
        y = b.conv(x, b.weights(33, 18, side, side), pads=(side // 2,) * 4, epilogue=[fused("Relu")])
        b.output(y, b.conv(y, b.weights(8, 33, side, side)))
    b.output(b.conv(x, b.weights(9, 18, 3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)))  # 5x5, mostly zeros
    return b


def winograd(options: dict[str, Options], at: float, form: str = "winograd") -> dict[str, Choice]:
    """For every layer that has schedules of this form, the one at this share of their list."""
    found = {name: [c for c in item.choices if c.form == form] for name, item in options.items()}
    return {name: choices[int(at * len(choices))] for name, choices in found.items() if choices}


@pytest.mark.parametrize("target", ["host", "x86-64-v3", "x86-64"])
def test_every_choice_is_right(target: str) -> None:
    bundle, chosen = maps(), Target.named(target)
    if not runs(chosen):
        pytest.skip("not on this CPU")
    options = compile_graph(bundle.graph, chosen).options
    seen: set[Choice] = set()
    for i in range(ROUNDS):
        choices = winograd(options, i / ROUNDS)
        program = check(bundle, chosen, flags=("-O1",), choices=choices, tolerance=2e-5)
        seen |= {program.options[name].chosen for name in choices}
    assert {c.tile for c in seen} == {2, 4} and len({c.height for c in seen}) > 1


def test_tiles_along_the_vectors() -> None:
    bundle, target = maps(), Target.named("x86-64-v4")
    if not runs(target):
        pytest.skip("not on this CPU")
    options = compile_graph(bundle.graph, target).options
    seen: set[Choice] = set()
    for i in range(3):
        choices = winograd(options, i / 3, "winograd-tiles")
        program = check(bundle, target, flags=("-O1",), choices=choices, tolerance=2e-5)
        seen |= {program.options[name].chosen for name in choices}
    assert {c.height for c in seen} == {8, 16, 24} and {c.form for c in seen} == {"winograd-tiles"}
    assert len(choices) > 5


def test_larger_kernels() -> None:
    """A first layer of ResNet, 5x5 and dilated layers: the model takes the form, and results stay right."""
    b = Bundle(75)
    b.output(b.conv(b.value(1, 3, 112, 112), b.weights(64, 3, 7, 7), stride=(2, 2), pads=(3, 3, 3, 3)),
             b.conv(b.value(1, 32, 28, 28), b.weights(64, 32, 5, 5), pads=(2, 2, 2, 2)),
             b.conv(b.value(1, 64, 28, 28), b.weights(64, 64, 3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)))
    program = check(b, "host", flags=("-O2",), tolerance=2e-5)
    assert {item.chosen.form for item in program.options.values()} == {"winograd"}


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 23), st.integers(2, 23),
                          st.integers(1, 70), st.sampled_from([(1, 1, 1, 1), (0, 2, 1, 0), (2, 0, 2, 2)]),
                          st.integers(3, 7)), min_size=4, max_size=4), st.floats(0, 0.99))
def test_any_map(shapes: list[tuple[int, int, int, int, int, tuple[int, int, int, int], int]], at: float) -> None:
    b = Bundle(len(shapes[0]))
    for n, c, h, w, f, pads, side in shapes:
        if min(h + pads[0] + pads[2], w + pads[1] + pads[3]) > side:
            b.output(b.conv(b.value(n, c, h, w), b.weights(f, c, side, side), pads=pads))
    if b.graph.outputs:
        choices = winograd(compile_graph(b.graph, Target.host()).options, at)
        check(b, "host", flags=("-O1",), choices=choices, tolerance=2e-5)


def test_neon() -> None:
    b = maps()
    inputs = b.sample()
    target = Target.named("aarch64")
    choices = winograd(compile_graph(b.graph, target).options, 0.5)
    program = compile_graph(b.graph, target, choices=choices)
    found = neon.run_model(program.source, program.weights, scratch_bytes(program, 2), inputs,
                           [shape for _, shape in program.outputs], target=target, ranges=2)
    errors = differences(b.graph, found, list(interpreter.run(b.graph, inputs).values()))
    assert max(errors.values()) < 2e-5, errors


def test_layers_that_cut_chunks_into_groups_of_one_size() -> None:
    """Panels of weights that one group fetches ahead, or two: functions of two names."""
    b, target = Bundle(75), Target.named("x86-64-v4")
    for tiles in (8, 16):
        b.output(b.conv(b.value(1, 5, 8, 2 * tiles), b.weights(48, 5, 3, 3), pads=(1, 1, 1, 1)))
    options = compile_graph(b.graph, target).options
    choices = {name: next(c for c in item.choices if (c.form, c.height, c.tile, c.chunk) == ("winograd", 48, 4, tiles))
               for tiles, (name, item) in zip((8, 16), options.items(), strict=True)}
    source = compile_graph(b.graph, target, choices=choices).source["model.c"]
    assert len(set(re.findall(r"void (winograd4_6_3_8_\d)\(", source))) == 2
    if target.runs_here()[0]:
        check(b, target, flags=("-O1",), choices=choices, tolerance=2e-5)


def test_the_model_lets_tiles_lie_along_the_vectors_where_few_channels_share_them() -> None:
    b = Bundle(74)
    for channels, side in ((3, 416), (64, 112)):
        b.output(b.conv(b.value(1, channels, side, side), b.weights(16, channels, 6, 6), stride=(2, 2),
                        pads=(2, 2, 2, 2)))
    options = compile_graph(b.graph, Target.named("x86-64-v4")).options
    assert [item.chosen.form for item in options.values()] == ["winograd-tiles", "winograd"]


@pytest.mark.parametrize("rate", [1.0, 1.5, 8.0])
def test_the_model_takes_it_for_dense_layers(rate: float) -> None:
    b = Bundle(72)
    keep = np.repeat(b.rng.random((8, 64, 3, 3)) < 1 / rate, 8, axis=0)  # whole blocks of 8 filters
    b.output(b.conv(b.value(1, 64, 56, 56), b.weights(64, 64, 3, 3, keep=keep), pads=(1, 1, 1, 1)))
    chosen = [item.chosen.form for item in compile_graph(b.graph, Target.named("x86-64-v4")).options.values()]
    assert chosen == ["pixels" if rate == 8 else "winograd"]
