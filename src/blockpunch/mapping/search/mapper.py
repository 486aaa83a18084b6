"""The loop of the search: propose, evaluate, learn; at the end the best few are evaluated thoroughly."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blockpunch.mapping.choices import Costs, Mapped, write_plan
from blockpunch.mapping.coupling import Alive
from blockpunch.mapping.exact import why
from blockpunch.mapping.goal import Goal
from blockpunch.mapping.network import Network
from blockpunch.mapping.prediction import predict
from blockpunch.mapping.search.controller import Controller
from blockpunch.mapping.search.executors import Evaluate, Evaluator, Executor, Local
from blockpunch.mapping.search.journal import Journal
from blockpunch.mapping.search.space import Actions, Candidate, Space
from blockpunch.mapping.table import LatencyTable

SOURCE = "search"
EVALUATIONS = 200
BATCH = 8
"""New candidates of a step of the controller."""
DRAWS = 6
"""Times that it may draw for them, each time more evenly, by :data:`WARMTH`."""
WARMTH = 0.5
ELITES = 4
"""Of the best candidates so far, which it learns from in each step beside the new ones (Abolafia et al. 2018)."""
FINALISTS = 4
"""Of the candidates that did best, with the exact mapping; they are evaluated thoroughly, which decides."""
LEAST, HOPELESS = 1e-12, 1e6
"""Bounds of a loss: nothing is lost, and answers that are not finite."""
PATIENCE = 15
"""Steps without a better candidate, after which the search ends."""

Progress = Callable[[str, float, float], None]
"""Called with a line of text, what is done, and what there is to do."""


class Proposer(Protocol):
    """Proposes actions, and is told how they did."""

    def draw(self, count: int, temperature: float) -> list[Actions]:
        """That many proposals; above a temperature of 1 more evenly than it would by itself."""
        ...

    def learn(self, proposals: Sequence[Actions], rewards: Sequence[float]) -> None:
        """The rewards of proposals; more is better."""
        ...


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the candidate.
        loss: of it, evaluated thoroughly.
        exact: the same of the exact mapping, the first candidate.
        losses: of all candidates in the order of proposal, evaluated in short.
    """

    best: Candidate
    loss: float
    exact: float
    losses: list[float]


def map_search(network: Network, table: LatencyTable, costs: Costs, goal: Goal, evaluator: Evaluator, *,
               alive: Alive | None = None, evaluations: int = EVALUATIONS, seed: int = 0,
               journal: str | Path | None = None, executor: Executor | None = None,
               progress: Progress = lambda text, done, total: None) -> tuple[Mapped, Found]:
    """The best plan found among those that the table predicts to reach ``goal``, and how it did.

    The same arguments find the same plan, whatever the executor, and however often the search was ended and begun
    again from its journal. A search of more evaluations goes on from the journal of one of fewer.

    Args:
        network, table, costs, goal, alive: as for :func:`blockpunch.mapping.exact.map_exact`.
        evaluator: gives the loss of a candidate.
        evaluations: of different candidates, at most.
        seed: of the controller.
        journal: file that keeps the losses; None: none is kept.
        executor: where candidates are evaluated; by default in threads of this process.
        progress: called with a line of text, candidates done, and ``evaluations``.

    Raises:
        DataError: as the exact mapping, or a journal of another run.
        PlanError: the goal cannot be reached; names the fastest point.
        ClusterError: the executor's cluster.
    """
    space = Space.of(network, table, costs, goal, alive or {})
    book = Journal(journal, {"network": network.key, "goal": str(goal), "latencies or costs": space.digest,
                             "photos or weights": evaluator.fingerprint, "seed": seed})
    found = search(space, evaluator, Controller(space, seed), evaluations=evaluations, journal=book, executor=executor,
                   progress=progress)
    return _mapped(network, table, space, found), found


def search(space: Space, evaluator: Evaluator, proposer: Proposer, *, evaluations: int, journal: Journal,
           executor: Executor | None = None, progress: Progress = lambda text, done, total: None) -> Found:
    """The best candidate of a space that a proposer finds; see :func:`map_search`."""
    with (executor or Local()).serve(evaluator) as evaluate:
        trials = Trials(space, journal, evaluate, evaluations, progress)
        trials.judge({space.complete(space.neutral): space.neutral})
        idle = 0
        while not trials.full and idle < PATIENCE:
            best = trials.best
            fresh = trials.fresh(proposer)
            if not fresh:
                break
            trials.judge(fresh)
            lessons = list(dict.fromkeys([*fresh, *trials.leaders(ELITES)]))
            proposer.learn([trials.actions[candidate] for candidate in lessons],
                           [-math.log(trials.losses[candidate]) for candidate in lessons])
            idle = 0 if trials.best < best else idle + 1
        return trials.final()


@dataclass
class Trials:
    """The candidates that were evaluated, in the order in which they were proposed.

    Args:
        space: of the candidates.
        journal: answers for what it knows.
        evaluate: answers for the rest.
        most: evaluations.
        progress: told about each.
    """

    space: Space
    journal: Journal
    evaluate: Evaluate
    most: int
    progress: Progress
    losses: dict[Candidate, float] = field(default_factory=dict)
    actions: dict[Candidate, Actions] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether all evaluations are used up."""
        return len(self.losses) >= self.most

    @property
    def best(self) -> float:
        """The least loss so far."""
        return min(self.losses.values(), default=math.inf)

    def leaders(self, count: int) -> list[Candidate]:
        """Those that did best."""
        return heapq.nsmallest(count, self.losses, key=lambda candidate: self.losses[candidate])

    def fresh(self, proposer: Proposer) -> dict[Candidate, Actions]:
        """Candidates of a step, none known yet: proposing the best one again and again would teach nothing."""
        found: dict[Candidate, Actions] = {}
        for attempt in range(DRAWS):
            for actions in proposer.draw(BATCH, 1 + WARMTH * attempt):
                candidate = self.space.complete(actions)
                if candidate not in self.losses and len(found) < min(BATCH, self.most - len(self.losses)):
                    found.setdefault(candidate, actions)
            if len(found) == BATCH:
                break
        return found

    def judge(self, candidates: Mapping[Candidate, Actions]) -> None:
        """Evaluate candidates."""
        losses = self.ask(list(candidates), thorough=False)
        self.losses |= zip(candidates, losses, strict=True)
        self.actions |= candidates

    def ask(self, candidates: Sequence[Candidate], thorough: bool) -> list[float]:
        """Losses, from the journal or by evaluation."""
        cells = [self.space.cells(candidate) for candidate in candidates]
        found = [self.journal.get(each, thorough) for each in cells]
        missing = [number for number, loss in enumerate(found) if loss is None]
        done = len(candidates) - len(missing)
        for number, loss in self.evaluate([cells[n] for n in missing], thorough) if missing else ():
            loss = min(max(loss, LEAST), HOPELESS) if math.isfinite(loss) else HOPELESS
            found[missing[number]] = loss
            self.journal.add(cells[missing[number]], loss, thorough)
            done += 1
            if thorough:
                self.progress("search: the last few", done, len(candidates))
            else:
                self.progress(f"search: least loss {min(self.best, loss):.3g}", len(self.losses) + done, self.most)
        return [loss for loss in found if loss is not None]

    def final(self) -> Found:
        """The best of the best, evaluated thoroughly."""
        exact = next(iter(self.losses))
        heat = list(dict.fromkeys([exact, *self.leaders(FINALISTS)]))
        losses = self.ask(heat, thorough=True)
        loss, best = min(zip(losses, heat, strict=True), key=lambda pair: pair[0])
        return Found(best, loss, losses[0], list(self.losses.values()))


def _mapped(network: Network, table: LatencyTable, space: Space, found: Found) -> Mapped:
    """The plan of what was found, with its reasons."""
    steps, chosen, price = [item.step for item in network.items], space.chosen(found.best), space.price
    head = f"loss {found.loss:.3g} after {len(found.losses)} evaluations, exact {found.exact:.3g}"
    reasons = {step: f"{head}; {why(option, list(choices), price)}"
               for step, option, choices in zip(steps, chosen, space.offered, strict=True) if len(choices) > 1}
    cells = {step: option.cell for step, option in zip(steps, chosen, strict=True)}
    predicted, dense = predict(network, table, cells), table.predict(network, {})
    plan = write_plan(network, cells, predicted.items, SOURCE, reasons)
    return Mapped(plan, predicted.seconds, dense.seconds, dense.rest, sum(option.cost for option in chosen))
