"""Minimal filtering: the lines of C and the matrix, put together, are exactly the filter that they stand for."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest

from blockpunch.compiler.forms.minimal_filtering import input_line, output_line, unit, weight_matrix

CASES = [(m, r) for m in range(2, 7) for r in range(2, 8) if 4 <= m + r - 1 <= 8]


def run_c(code: str, values: dict[str, Fraction]) -> dict[str, Fraction]:
    """Assignments in C, carried out with exact numbers."""
    found = dict(values)
    for statement in re.sub(r"const vf|[{}]", ";", code).split(";"):
        for assignment in filter(str.strip, statement.split(",")):
            name, _, expression = assignment.partition("=")
            found[name.strip()] = eval(re.sub(r"([0-9.]+)f", r"Fraction('\1')", expression),
                                       {"Fraction": Fraction}, found)
    return found


@pytest.mark.parametrize(("m", "r"), CASES)
def test_it_filters(m: int, r: int) -> None:
    rng, n = np.random.default_rng(10 * m + r), m + r - 1
    inputs, taps = ([Fraction(int(x)) for x in rng.integers(-99, 99, size)] for size in (n, r))
    transformed = run_c(input_line([f"d{i}" for i in range(n)], [f"t{i}" for i in range(n)]),
                        {f"d{i}": x for i, x in enumerate(inputs)})
    matrix = weight_matrix(m, r)
    weights = [sum((Fraction(c).limit_denominator(10 ** 6) * tap for c, tap in zip(row, taps, strict=True)), Fraction())
               for row in matrix]
    results = run_c(output_line([f"d{i}" for i in range(n)], [f"y{i}" for i in range(m)]),
                    {f"d{i}": weight * transformed[f"t{i}"] for i, weight in enumerate(weights)})
    wanted = [sum(inputs[i + k] * taps[k] for k in range(r)) for i in range(m)]
    assert [results[f"y{i}"] for i in range(m)] == wanted


def test_one_position_reaches_all_results_unscaled() -> None:
    for m, r in CASES:
        results = run_c(output_line([f"d{i}" for i in range(m + r - 1)], [f"y{i}" for i in range(m)]),
                        {f"d{i}": Fraction(int(i == unit(m + r - 1))) for i in range(m + r - 1)})
        assert [results[f"y{i}"] for i in range(m)] == [1] * m
