"""Elementwise operators as C: one row each, for scalars (prefix ``s_``) and vectors (``v_``) alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Attrs = Mapping[str, Any]
Unary = Callable[[str, str, Attrs], str]
Binary = Callable[[str, str, str], str]


def number(x: float) -> str:
    """A float literal in C."""
    if x in (float("inf"), float("-inf")):
        return f"{'-' if x < 0 else ''}__builtin_inff()"
    return f"{float(x)!r}f"


def _clip(p: str, x: str, a: Attrs) -> str:
    return f"{p}min({p}max({x}, {p}set({number(a['min'])})), {p}set({number(a['max'])}))"


def _unit(p: str, x: str) -> str:
    return f"{p}min({p}max({x}, {p}set(0.0f)), {p}set(1.0f))"


def _gelu(p: str, x: str, a: Attrs) -> str:
    if a.get("approximate", "none") == "tanh":
        return f"(0.5f * {x} * (1.0f + {p}tanh(0.7978845608f * ({x} + 0.044715f * {x} * {x} * {x}))))"
    return f"{p}gelu({x})"


UNARY: dict[str, Unary] = {
    "Affine": lambda p, x, a: f"({x} * {number(a['scale'])} + {number(a['shift'])})",
    "Relu": lambda p, x, a: f"{p}max({x}, {p}set(0.0f))",
    "Clip": _clip,
    "Sigmoid": lambda p, x, a: f"{p}sigmoid({x})",
    "Tanh": lambda p, x, a: f"{p}tanh({x})",
    "Silu": lambda p, x, a: f"{p}silu({x})",
    "HardSwish": lambda p, x, a: f"({x} * {_unit(p, f'({x} * {number(1 / 6)} + 0.5f)')})",
    "HardSigmoid": lambda p, x, a: _unit(p, f"({x} * {number(a['alpha'])} + {number(a['beta'])})"),
    "LeakyRelu": lambda p, x, a: f"({p}max({x}, {p}set(0.0f)) + {number(a['alpha'])} * {p}min({x}, {p}set(0.0f)))",
    "Elu": lambda p, x, a: (f"({p}max({x}, {p}set(0.0f)) + {number(a['alpha'])} * "
                            f"({p}exp({p}min({x}, {p}set(0.0f))) - 1.0f))"),
    "Gelu": _gelu,
    "Exp": lambda p, x, a: f"{p}exp({x})",
    "Log": lambda p, x, a: f"{p}ln({x})",
    "Sqrt": lambda p, x, a: f"{p}sqrt({x})",
    "Neg": lambda p, x, a: f"(-{x})",
    "Abs": lambda p, x, a: f"{p}abs({x})",
    "Erf": lambda p, x, a: f"{p}erf({x})",
    "Sin": lambda p, x, a: f"{p}sin({x})",
    "Cos": lambda p, x, a: f"{p}cos({x})",
    "Softplus": lambda p, x, a: f"{p}softplus({x})",
    "Mish": lambda p, x, a: f"({x} * {p}tanh({p}softplus({x})))",
    "Copy": lambda p, x, a: x,
}

BINARY: dict[str, Binary] = {
    "Add": lambda p, x, y: f"({x} + {y})",
    "Sub": lambda p, x, y: f"({x} - {y})",
    "Mul": lambda p, x, y: f"({x} * {y})",
    "Div": lambda p, x, y: f"({x} / {y})",
    "Min": lambda p, x, y: f"{p}min({x}, {y})",
    "Max": lambda p, x, y: f"{p}max({x}, {y})",
    "Pow": lambda p, x, y: f"{p}exp({y} * {p}log({x}))",
    "PRelu": lambda p, x, y: f"({p}max({x}, {p}set(0.0f)) + {y} * {p}min({x}, {p}set(0.0f)))",
}


def apply(prefix: str, op: str, attrs: Attrs, x: str, y: str | None = None) -> str:
    """The C expression of ``op`` applied to the variables ``x`` (and ``y``)."""
    if y is not None:
        return BINARY[op](prefix, x, y)
    return UNARY[op](prefix, x, attrs)
