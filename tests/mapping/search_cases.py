"""Five made-up layers, and a loss that is not the sum of their costs: its optimum can be counted out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from blockpunch.layers import Layer
from blockpunch.mapping.choices import Option
from blockpunch.mapping.coupling import Chains
from blockpunch.mapping.grid import DENSE
from blockpunch.mapping.network import Cell, Item
from blockpunch.mapping.search.controller import Controller
from blockpunch.mapping.search.journal import Journal
from blockpunch.mapping.search.mapper import Executor, Found, search
from blockpunch.mapping.search.space import Space
from blockpunch.schemes import Scheme

SCHEMES = {"block-punched:4x1": (1.3, 1.0), "block-punched:16x4": (1.0, 1.6), "filter": (0.8, 4.0)}
"""Scheme -> (seconds, cost) next to one another."""
RATES = (2.0, 4.0, 8.0)


def space(budget: float = 3.2) -> Space:
    """Five layers of a second each when dense, which differ in what they cost; the first has no choice."""
    items, offered = [], []
    for number in range(5):
        name = f"layer{number}"
        items.append(Item(name, (Layer(name, "conv", (64, 64, 3, 3)),), name, "" if number else "first convolution"))
        options = [Option(DENSE, 1.0, 1.0, 0.0, True)]
        if number:
            weight = (1 + number % 3) / 4
            options += [Option(Scheme.parse(scheme), rate, min(1.0, slow / rate), weight * bad * (1 - 1 / rate), True)
                        for scheme, (slow, bad) in SCHEMES.items() for rate in RATES]
        offered.append(options)
    return Space(items, offered, budget, Chains(list(range(len(items))), [None] * len(items)))


class Twisted:
    """The costs of a space with a taste of their own: what the solver cannot know.

    Args:
        calls: a file that gets a byte for each evaluation.
        pause: seconds that an evaluation takes.
    """

    fingerprint = "twisted"

    def __init__(self, calls: Path | None = None, pause: float = 0.0) -> None:
        self.calls, self.pause = calls, pause
        self.costs = {(item.step, option.scheme, option.rate): option.cost
                      for item, options in zip(space().items, space().offered, strict=True) for option in options}

    def __call__(self, cells: Mapping[str, Cell], thorough: bool = False) -> float:
        if self.calls is not None:
            with self.calls.open("ab") as file:
                file.write(b".")
        time.sleep(self.pause)
        total, before = 0.05, False
        for number in range(1, 5):
            scheme, rate = cells.get(f"layer{number}", (DENSE, 1.0))
            coarse = scheme.block == (16, 4)
            taste = (0.3 if coarse else 1.5) if number < 3 else 1.0
            total += taste * self.costs[f"layer{number}", scheme, rate] + 0.3 * (coarse and before)
            before = coarse
        return total


def optimum(evaluator: Twisted, given: Space) -> float:
    """The least loss of all combinations within the budget."""
    best = math.inf
    for candidate in product(*(range(len(options)) for options in given.offered)):
        if sum(option.seconds for option in given.chosen(candidate)) <= given.budget:
            best = min(best, evaluator(given.cells(candidate)))
    return best


def run(evaluator: Twisted, *, journal: Path | None = None, executor: Executor | None = None, seed: int = 0,
        evaluations: int = 60) -> Found:
    """A search with everything else as it is."""
    given = space()
    book = Journal(journal, {"space": given.digest, "seed": seed})
    return search(given, evaluator, Controller(given, seed), evaluations=evaluations, journal=book, executor=executor)


if __name__ == "__main__":  # what a test starts, and kills
    folder = Path(os.environ["FOLDER"])
    print(run(Twisted(folder / "calls", pause=0.02), journal=folder / "journal.jsonl"))
