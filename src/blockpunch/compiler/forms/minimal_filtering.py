"""Winograd's minimal filtering F(m, r): m results of a filter with r taps from m + r - 1 multiplications.

Toom and Cook: filtering is the transpose of a product of polynomials, which is known by its values at as many points as
it has coefficients, infinity being one. With the results written as ``A^T [(G g) * (B^T d)]``, g the r taps and d the
n = m + r - 1 inputs, G and A^T hold powers of the points, and B^T the polynomials that vanish at all other points
(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, give them for r = 3).

Here is G as a matrix, and B^T and A^T as lines of C. Points come in pairs p and -p, which share all but one addition.
Errors grow with n: of all sets tried, of powers of two, whose products are exact, these have the least. Seven inputs by
three pairs are as exact as six by two pairs and zero, eight have 1.8 times their error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.expressions import number

_POINTS = {
    4: (0.0, 1.0, -1.0),
    5: (1.0, -1.0, 0.5, -0.5),
    6: (0.0, 1.0, -1.0, 2.0, -2.0),
    7: (1.0, -1.0, 2.0, -2.0, 0.25, -0.25),
    8: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
"""n -> the points apart from infinity; each p before its -p."""

Matrix = npt.NDArray[np.float64]


def weight_matrix(m: int, r: int) -> Matrix:
    """G, [m + r - 1, r]."""
    points = _POINTS[m + r - 1]
    scales = [np.prod([p - other for other in points if other != p]) for p in points]
    finite = [[p ** k / scale for k in range(r)] for p, scale in zip(points, scales, strict=True)]
    return np.array([*finite, [0.0] * (r - 1) + [1.0]])


def unit(n: int) -> int:
    """Position of the point 1, whose powers reach every result unscaled: a place to add what all results get."""
    return _POINTS[n].index(1.0)


def input_line(d: Sequence[str], t: Sequence[str]) -> str:
    """C: the variables ``t`` become B^T times the variables ``d``, as many."""
    points, found = _POINTS[len(d)], []
    for at, p in enumerate(points):
        shared = _polynomial([other for other in points if abs(other) != abs(p)])
        if not p:
            found.append(f"{t[at]} = {_sum(shared, d)};")
        elif p > 0:  # (x + p) and (x - p) times the same polynomial
            found.append(f"{{ const vf e = {_sum(shared, d[1:])}, o = {_times(p, _sum(shared, d))}; "
                         f"{t[at]} = e + o; {t[at + 1]} = e - o; }}")
    return " ".join([*found, f"{t[-1]} = {_sum(_polynomial(points), d)};"])


def output_line(d: Sequence[str], t: Sequence[str]) -> str:
    """C: the variables ``t`` become A^T times the variables ``d``."""
    points, declared = _POINTS[len(d)], []
    rows: list[list[tuple[float, str]]] = [[] for _ in t]
    for at, p in enumerate(points):
        if not p:
            rows[0].append((1.0, d[at]))
        elif p > 0:
            declared.append(f"e{at} = {d[at]} + {d[at + 1]}, o{at} = {d[at]} - {d[at + 1]}")
            for power, row in enumerate(rows):
                row.append((p ** power, f"{'o' if power % 2 else 'e'}{at}"))
    rows[-1].append((1.0, d[-1]))
    lines = [f"{name} = {_sum([c for c, _ in row], [v for _, v in row])};" for name, row in zip(t, rows, strict=True)]
    return f"{{ const vf {', '.join(declared)}; {' '.join(lines)} }}"


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Coefficients of the monic polynomial with these roots, the constant first."""
    return [float(c) for c in np.poly(roots)[::-1]]


def _sum(coefficients: Sequence[float], values: Sequence[str]) -> str:
    """A linear combination in C; it begins with a value that is added, if there is one."""
    terms = [(c, value) for c, value in zip(coefficients, values, strict=False) if c]
    terms.sort(key=lambda term: term[0] < 0)
    text = "".join(f" {'-' if c < 0 else '+'} {_times(abs(c), value)}" for c, value in terms)
    return text.removeprefix(" + ")


def _times(factor: float, value: str) -> str:
    return value if factor == 1 else f"{number(factor)} * {f'({value})' if ' ' in value else value}"
