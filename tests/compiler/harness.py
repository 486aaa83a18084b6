"""What the compiler's tests share: graphs built case by case, and generated C run in memory that gives mistakes away.

A :class:`Bundle` collects many small cases as the outputs of one graph, since one C compilation serves them all.
:class:`Native` runs ``model.c`` with scratch memory full of NaN, guards around every array, weights that must not
change, and any split of the work.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import emulation
import numpy as np

from blockpunch.compiler import Choice, Program, compile_graph, toolchain
from blockpunch.graph import interpreter
from blockpunch.graph.ir import FusedOp, Graph, Node, Value
from blockpunch.graph.operators import OPERATORS
from blockpunch.graph.verify import verify
from blockpunch.target import Target

GUARD = 64
"""Floats before and behind every array of a run."""

DRIVER = r"""
#include "bp_model.h"
/* cuts every parallel_for into `ranges` parts and runs the last one first: no part may lean on an earlier one */
static void split(void *pool, void (*task)(void *, int, int, int), void *arg, int n, int grain) {
  (void)grain;
  int ranges = *(int *)pool;
  for (int r = ranges; r-- > 0;) {
    int begin = (int)((int64_t)n * r / ranges), end = (int)((int64_t)n * (r + 1) / ranges);
    if (begin < end) task(arg, begin, end, r);
  }
}
BP_EXPORT void bp_split_run(const void *weights, void *scratch, const float *const *in, float *const *out, int ranges) {
  bp_env env = {split, &ranges, 0, 0};
  bp_model_run(weights, scratch, in, out, &env);
}
"""


class Bundle:
    """A graph in the making; every :meth:`output` is one test case."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("bundle", [], [], [], {}, {})

    def input(self, *shape: int) -> str:
        """The graph input of this shape (one per shape)."""
        name = "in_" + "x".join(map(str, shape))
        if name not in self.graph.values:
            self.graph.inputs.append(name)
            self.graph.values[name] = Value(name, shape)
        return name

    def value(self, *shape: int) -> str:
        """A new value that a node computes, so that its memory layout is the compiler's choice."""
        return self.node("Neg", self.input(*shape))

    def constant(self, array: Any) -> str:
        """A constant."""
        name = f"const{len(self.graph.constants)}"
        self.graph.constants[name] = np.ascontiguousarray(array, np.float32).reshape(np.shape(array))
        return name

    def weights(self, *shape: int, keep: Any = None) -> str:
        """Random weights, of unit gain; ``keep`` is a mask."""
        fan = max(int(np.prod(shape[1:])), 1)
        weights = self.rng.normal(size=shape).astype(np.float32) / np.sqrt(fan)
        return self.constant(weights if keep is None else np.where(keep, weights, 0))

    def node(self, op: str, *inputs: str, epilogue: Sequence[FusedOp] = (), operands: Sequence[str] = (),
             **attrs: Any) -> str:
        """Append a node and return its value; ``operands`` are what the epilogue reads, in order."""
        name = f"{op.lower()}{len(self.graph.nodes)}"
        core = Node(name, op, tuple(inputs), (name,), attrs, f"test.{name}")
        shape = OPERATORS[op].infer(core, [self.graph.shape(item) for item in inputs])[0]
        self.graph.nodes.append(Node(name, op, (*inputs, *operands), (name,), attrs, core.path, tuple(epilogue)))
        self.graph.values[name] = Value(name, shape)
        return name

    def conv(self, x: str, weights: str, *, bias: bool = True, stride: tuple[int, int] = (1, 1),
             pads: tuple[int, int, int, int] = (0, 0, 0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1,
             epilogue: Sequence[FusedOp] = (), operands: Sequence[str] = ()) -> str:
        """A convolution."""
        filters = self.graph.shape(weights)[0]
        extra = [self.constant(self.rng.normal(size=filters))] if bias else []
        return self.node("Conv", x, weights, *extra, stride=stride, pads=pads, dilation=dilation, groups=groups,
                         epilogue=epilogue, operands=operands)

    def output(self, *names: str) -> None:
        """Make values outputs of the graph."""
        self.graph.outputs = list(dict.fromkeys([*self.graph.outputs, *names]))

    def sample(self, seed: int = 1) -> list[np.ndarray]:
        """Random inputs."""
        rng = np.random.default_rng(seed)
        return [rng.normal(size=self.graph.shape(name)).astype(np.float32) for name in self.graph.inputs]


def fused(op: str, operand: int | None = None, **attrs: Any) -> FusedOp:
    return FusedOp(op, attrs, operand)


class Native:
    """A compiled program in this process, without the runtime."""

    def __init__(self, program: Program, target: Target, flags: Sequence[str] = ()) -> None:
        self.program = program
        source = program.source
        if emulation.emulated(target):
            source, target = emulation.translate(source, target)
        sources = {**source, **toolchain.model_header(), "driver.c": DRIVER}
        data = toolchain.find_compiler(target).build_shared(sources, target, flags=flags)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.so"
            path.write_bytes(data)
            self._library = ctypes.CDLL(str(path))
        self._library.bp_split_run.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int]
        self._library.bp_split_run.restype = None

    def run(self, inputs: Sequence[np.ndarray], ranges: int = 1) -> list[np.ndarray]:
        """The outputs; fails when a guard, an input or a weight has changed."""
        weights = _Guarded(np.frombuffer(self.program.weights, np.uint8).view(np.float32))
        scratch = _Guarded(np.full(scratch_bytes(self.program, ranges) // 4, np.nan, np.float32))
        ins = [_Guarded(array, shift=1) for array in inputs]
        outs = [_Guarded(np.full(shape, np.nan, np.float32), shift=1) for _, shape in self.program.outputs]
        self._library.bp_split_run(weights.address, scratch.address, _pointers(ins), _pointers(outs), ranges)
        for what, items in (("weights", [weights]), ("scratch", [scratch]), ("an input", ins), ("an output", outs)):
            assert all(item.guards_intact() for item in items), f"wrote outside {what}"
        assert weights.unchanged(), "changed its weights"
        assert all(item.unchanged() for item in ins), "changed its inputs"
        return [out.array.copy() for out in outs]


def scratch_bytes(program: Program, threads: int) -> int:
    """Bytes of memory that ``threads`` threads run ``program`` in; they are whole cache lines."""
    return program.scratch_bytes + threads * program.thread_scratch_bytes


class _Guarded:
    """A copy of an array between two zones of NaN; 64-byte aligned, plus ``shift`` floats."""

    def __init__(self, array: np.ndarray, shift: int = 0) -> None:
        self._original = np.ascontiguousarray(array, np.float32) if array.dtype != np.float32 else array
        size = array.size
        raw = np.full(size + 2 * GUARD + 32, np.nan, np.float32)
        start = -(raw.ctypes.data // 4 + GUARD) % 16 + GUARD + shift
        self._before, self._behind = raw[:start], raw[start + size:]
        self.array = raw[start:start + size].reshape(array.shape)
        self.array[...] = array
        self.address = self.array.ctypes.data

    def guards_intact(self) -> bool:
        return bool(np.isnan(self._before).all() and np.isnan(self._behind).all())

    def unchanged(self) -> bool:
        return self.array.tobytes() == np.ascontiguousarray(self._original).tobytes()


def _pointers(items: Sequence[_Guarded]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(items))(*[item.address for item in items])


def differences(graph: Graph, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> dict[str, float]:
    """Output name -> largest difference relative to the largest value expected (inf where one is not a number)."""
    result = {}
    for name, a, b in zip(graph.outputs, found, expected, strict=True):
        assert a.shape == b.shape
        finite = np.isfinite(b)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            result[name] = float("inf")
            continue
        a, b = a[finite].astype(np.float64), b[finite]
        difference = np.abs(a - b).max(initial=0.0) / max(float(np.abs(b).max(initial=0.0)), 1e-30)
        result[name] = float(difference) if np.isfinite(difference) else float("inf")
    return result


def check(bundle: Bundle, target: Target | str, *, ranges: Sequence[int] = (1, 2, 3), tolerance: float = 1e-5,
          threads_hint: int = 1, seed: int = 1, flags: Sequence[str] = (),
          choices: Mapping[str, Choice] | None = None) -> Program:
    """Compile ``bundle`` for ``target``, run it with every split of the work, and compare all cases with the oracle."""
    verify(bundle.graph)
    target = Target.named(target) if isinstance(target, str) else target
    inputs = bundle.sample(seed)
    oracle = interpreter.run(bundle.graph, inputs)
    expected = [oracle[name] for name in bundle.graph.outputs]
    program = compile_graph(bundle.graph, target, threads_hint=threads_hint, choices=choices)
    native = Native(program, target, flags)
    for count in ranges:
        wrong = {name: error for name, error in
                 differences(bundle.graph, native.run(inputs, count), expected).items() if error > tolerance}
        assert not wrong, f"{target.name}, {count} ranges: " + "; ".join(
            f"{describe(bundle.graph, name)} is off by {error:.1e}" for name, error in wrong.items())
    return program


def describe(graph: Graph, name: str) -> str:
    """A case in words: the node that makes an output."""
    node = graph.producer()[name]
    shapes = ", ".join("x".join(map(str, graph.shape(item))) for item in node.inputs)
    attrs = ", ".join(f"{key}={value}" for key, value in node.attrs.items())
    ops = "".join(f" {f.op}{'' if f.operand is None else f'(input {f.operand})'}" for f in node.epilogue)
    return f"{node.name}({shapes}; {attrs}){ops and ' then' + ops}"
