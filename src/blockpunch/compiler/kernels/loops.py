"""Loop nests over views: the shape-independent part of elementwise operators, copies and data movement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from blockpunch.compiler.layout import View

_SPLIT = 4096
"""Elements per unit when a nest has one long loop only."""

_SHORT = 8
"""Below so many elements the innermost loop shares its unit with the one around it."""


@dataclass(frozen=True)
class Operand:
    """One side of a loop nest: the C address of its first element, and a stride per dimension (0: it broadcasts)."""

    pointer: str
    strides: tuple[int, ...]


Statement = Callable[[str, list[str]], list[str]]
"""From a prefix (``v_``, ``s_``) and the operands' values to statements that set the variable ``x``."""


def broadcast(view_shape: tuple[int, ...], strides: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an operand seen with ``shape``: 0 along every dimension that it is repeated over."""
    padded = (1,) * (len(shape) - len(view_shape)) + view_shape
    aligned = (0,) * (len(shape) - len(strides)) + strides
    return tuple(0 if p == 1 else s for p, s in zip(padded, aligned, strict=True))


def loop_nest(shape: tuple[int, ...], out: Operand, sources: Sequence[Operand],
              statement: Statement) -> tuple[int, str]:
    """(units, C statements) of ``out[i] = f(sources[i]...)`` over ``shape``; vectors along the innermost dimension."""
    dims, strides = _collapse(shape, [out.strides, *(s.strides for s in sources)])
    if len(dims) == 1 and dims[0] >= 2 * _SPLIT:
        return _long_loop(dims[0], [s[0] for s in strides], out, sources, statement)
    own = 2 if len(dims) > 1 and dims[-1] < _SHORT else 1  # innermost loops that are one unit's
    names = ["o", *(f"p{i}" for i in range(len(sources)))]
    lines = ["for (int unit = begin; unit < end; unit++) {", "int rest = unit;"]
    for d in range(len(dims) - own - 1, -1, -1):
        lines.append(f"const ptrdiff_t i{d} = rest % {dims[d]}; rest /= {dims[d]};")
    for name, operand, stride in zip(names, (out, *sources), strides, strict=True):
        terms = "".join(f" + i{d} * {stride[d]}" for d in range(len(dims) - own) if stride[d])
        const = "" if name == "o" else "const "
        lines.append(f"{const}float *restrict {name} = {operand.pointer}{terms};")
    lines.append("(void)rest;")
    lines += (_inner_loop("0", str(dims[-1]), [s[-1] for s in strides], statement) if own == 1 else
              _short_loop(dims[-2:], [s[-2:] for s in strides], statement))
    return prod(dims[:-own]), "\n".join([*lines, "}"])


def _short_loop(dims: list[int], strides: list[list[int]], statement: Statement) -> list[str]:
    """The two innermost loops where the last is short: pairs that lie apart are interleaved as vectors."""
    lines = ["ptrdiff_t i = 0;"]
    if dims[1] == 2 and strides[0] == [2, 1] and all(s[0] == 1 for s in strides[1:]):
        lines += [f"for (; i + VL <= {dims[0]}; i += VL) {{", "vf pair[2];"]
        for j in (0, 1):
            values = [f"v_load(p{n} + i + {j * s[1]})" for n, s in enumerate(strides[1:])]
            lines += ["{", *statement("v_", values), f"pair[{j}] = x;", "}"]
        lines += ["v_store(o + 2 * i, v_zip_low(pair[0], pair[1]));",
                  "v_store(o + 2 * i + VL, v_zip_high(pair[0], pair[1]));", "}"]
    values = [f"p{n}[i * {s[0]} + j * {s[1]}]" for n, s in enumerate(strides[1:])]
    return [*lines, f"for (; i < {dims[0]}; i++) for (ptrdiff_t j = 0; j < {dims[1]}; j++) {{",
            *statement("s_", values), f"o[i * {strides[0][0]} + j * {strides[0][1]}] = x;", "}"]


def _long_loop(n: int, strides: list[int], out: Operand, sources: Sequence[Operand],
               statement: Statement) -> tuple[int, str]:
    """One loop, cut into pieces for the threads."""
    lines = [f"float *restrict o = {out.pointer};"]
    lines += [f"const float *restrict p{i} = {s.pointer};" for i, s in enumerate(sources)]
    lines.append(f"const ptrdiff_t from = (ptrdiff_t)begin * {_SPLIT};")
    lines.append(f"const ptrdiff_t to = (ptrdiff_t)end * {_SPLIT} < {n} ? (ptrdiff_t)end * {_SPLIT} : {n};")
    return -(-n // _SPLIT), "\n".join([*lines, *_inner_loop("from", "to", strides, statement)])


def _inner_loop(start: str, stop: str, strides: list[int], statement: Statement) -> list[str]:
    """The innermost loop: vectors where all strides allow it, then single values."""
    def at(i: int) -> str:
        return f"p{i}" if not strides[i + 1] else f"p{i} + j * {strides[i + 1]}"

    count = len(strides) - 1
    lines = [f"ptrdiff_t j = {start};"]
    if strides[0] == 1 and all(s in (0, 1) for s in strides[1:]):
        values = [f"v_set(*p{i})" if not strides[i + 1] else f"v_load({at(i)})" for i in range(count)]
        lines += [f"for (; j + VL <= {stop}; j += VL) {{", *statement("v_", values), "v_store(o + j, x);", "}"]
    values = [f"*({at(i)})" for i in range(count)]
    return [*lines, f"for (; j < {stop}; j++) {{", *statement("s_", values), f"o[j * {strides[0]}] = x;", "}"]


def _collapse(shape: tuple[int, ...],
              strides: Sequence[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Drop dimensions of one, and join neighbours that all operands walk as one."""
    dims: list[int] = []
    joined: list[list[int]] = [[] for _ in strides]
    for d, n in enumerate(shape):
        if n == 1:
            continue
        if dims and all(j[-1] == s[d] * n for j, s in zip(joined, strides, strict=True)):
            dims[-1] *= n
            for j, s in zip(joined, strides, strict=True):
                j[-1] = s[d]
        else:
            dims.append(n)
            for j, s in zip(joined, strides, strict=True):
                j.append(s[d])
    if not dims:
        return [1], [[1] for _ in strides]
    return dims, joined


def margin_fill(view: View, pointer: str) -> tuple[int, str] | None:
    """(units, C statements) that zero the margin of every plane of ``view``, when anyone reads it."""
    plane = view.plane
    if plane is None or not plane.zero_margin:
        return None
    n, c, h, w = view.shape
    behind = plane.stride - plane.origin - h * plane.row
    body = f"""for (int unit = begin; unit < end; unit++) {{
float *o = {pointer} + (ptrdiff_t)(unit / {c}) * {view.strides[0]} + (ptrdiff_t)(unit % {c}) * {view.strides[1]};
zero(o - {plane.origin}, {plane.origin});
for (int row = 0; row < {h}; row++) zero(o + row * {plane.row} + {w}, {plane.row - w});
zero(o + {h * plane.row}, {behind});
}}"""
    return n * c, body
