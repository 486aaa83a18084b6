"""Every kernel family against the interpreter, for every instruction set of this architecture that runs here."""

from __future__ import annotations

from collections.abc import Callable

import conv_cases
import numpy as np
import other_cases
import pytest
from emulation import runs
from harness import Bundle, Native, check, describe, differences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_cases import Spec, bundle_of, convolutions, network

from blockpunch.artifact import Artifact
from blockpunch.build import compile
from blockpunch.compiler import compile_graph
from blockpunch.errors import UnsupportedOperatorError
from blockpunch.graph import interpreter
from blockpunch.runtime.session import Session
from blockpunch.target import Target

BUNDLES: list[Callable[[], Bundle]] = [
    conv_cases.conv_kernels, conv_cases.conv_maps, conv_cases.depthwise, conv_cases.conv_epilogues, conv_cases.zeros,
    conv_cases.linear, conv_cases.patterns, other_cases.elementwise, other_cases.powers, other_cases.concats,
    other_cases.slices, other_cases.movement, other_cases.windows, other_cases.resizing, other_cases.products,
    other_cases.outputs,
]
# The host's own target is built as it is shipped; for the others half the optimisation takes half the time.
TARGETS = [("host", ())] + [(name, ("-O1",)) for name in ("x86-64-v4", "x86-64-v3", "x86-64")
                            if name != Target.host().name and runs(Target.named(name))]
# The narrowest vectors differ from the others in tails and masks only: a part of the cases shows that.
NARROW = (conv_cases.conv_maps, conv_cases.zeros, conv_cases.linear, other_cases.elementwise, other_cases.windows)
CASES = [(bundle, target, flags) for bundle in BUNDLES for target, flags in TARGETS
         if target != "x86-64" or bundle in NARROW]


@pytest.mark.parametrize(("bundle", "target", "flags"), CASES, ids=[f"{b.__name__}-{t}" for b, t, _ in CASES])
def test_same_as_the_interpreter(bundle: Callable[[], Bundle], target: str, flags: tuple[str, ...]) -> None:
    check(bundle(), target, flags=flags)


@pytest.mark.parametrize(("target", "flags"), TARGETS, ids=[name for name, _ in TARGETS])
def test_extremes(target: str, flags: tuple[str, ...]) -> None:
    """Arguments far out, where an exponential overflows or vanishes on the way to an ordinary result."""
    bounded = ("Sigmoid", "Tanh", "Silu", "HardSwish", "Softplus", "Mish", "Erf")
    b = Bundle()
    x = b.input(4, 300)
    b.output(*[b.node(op, x) for op in bounded], b.node("Gelu", x, approximate="none"),
             b.node("Gelu", x, approximate="tanh"), b.node("Log", x), b.node("Elu", x, alpha=1.0),
             b.node("Softmax", x, axis=1))
    native = Native(compile_graph(b.graph, Target.named(target)), Target.named(target), flags)
    near = np.linspace(-130, 130, 1200, dtype=np.float32).reshape(4, 300)
    for values in (near, near * 1e-3, near * 1e3, np.float32(1e30) * np.sign(near)):
        expected = list(interpreter.run(b.graph, [values]).values())
        errors = differences(b.graph, native.run([values]), expected)
        wrong = {describe(b.graph, name): error for name, error in errors.items() if error > 1e-5}
        assert not wrong, f"up to {values.max():g}: {wrong}"


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(convolutions(), min_size=5, max_size=5))
def test_any_convolution(specs: list[Spec]) -> None:
    check(bundle_of(specs), "host", flags=("-O1",), threads_hint=len(specs[0]["epilogue"]) % 3 + 1)


@pytest.mark.parametrize("seed", range(4))
def test_any_network(seed: int) -> None:
    check(network(seed), TARGETS[seed % len(TARGETS)][0], flags=("-O1",), threads_hint=1 + seed % 2, tolerance=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(bundle_artifact: tuple[Bundle, Artifact], threads: int) -> None:
    bundle, artifact = bundle_artifact
    with Session(artifact, threads=threads) as session:
        for seed in range(10):
            inputs = dict(zip(bundle.graph.inputs, bundle.sample(seed), strict=True))
            expected = interpreter.run(bundle.graph, inputs)
            found = session.run(inputs)
            errors = differences(bundle.graph, list(found.values()), list(expected.values()))
            assert max(errors.values()) < 1e-4, errors


@pytest.fixture(scope="module")
def bundle_artifact() -> tuple[Bundle, Artifact]:
    bundle = network(99, layers=50)
    return bundle, compile(bundle.graph, threads=3)


def test_every_node_without_a_kernel_is_listed() -> None:
    b = Bundle()
    normal = [b.constant(np.ones(3, np.float32)) for _ in range(4)]
    b.output(*[b.node("BatchNorm", b.input(*shape), *normal, eps=1e-5) for shape in ((1, 3, 4, 4), (2, 3))])
    with pytest.raises(UnsupportedOperatorError, match=r"BatchNorm \(test.batchnorm0\), BatchNorm \(test.batchnorm1\)"):
        compile_graph(b.graph, Target.host())
