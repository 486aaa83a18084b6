"""Policy gradient against random search at equal numbers of evaluations, and the exact mapping beside them.

    python benchmarks/search.py resnet20 --table table.jsonl --cifar cifar-10-batches-py --speedup 2

Everything is chosen on training photos: the layers are fitted on some, candidates compared on others. Each plan found
is then pruned in one shot, without training, and judged on training photos that nothing saw, and on the test photos.
"Random" draws all actions evenly; "around exact" draws as the controller does before it has learned anything. Rows that
are in the file of results already are not computed again.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from blockpunch.atomic import write_text
from blockpunch.data import Preprocess, cifar10
from blockpunch.graph import load_graph
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Goal, LatencyTable, Network
from blockpunch.mapping.choices import contenders
from blockpunch.mapping.search import controller, mapper
from blockpunch.mapping.search.journal import Journal
from blockpunch.mapping.search.oneshot import SHARE, OneShotLoss
from blockpunch.mapping.search.space import EMPHASES, Actions, Candidate, Space
from blockpunch.plan import DENSE, LayerPlan, Plan
from blockpunch.pruning import module_layers, prune_oneshot_
from blockpunch.pruning.graph_module import GraphModule
from blockpunch.pruning.layer_errors import layer_errors
from blockpunch.target import Target
from networks import export

METHODS = ("search", "around exact", "random")


class Even:
    """Draws all actions evenly."""

    def __init__(self, space: Space, seed: int) -> None:
        self.allowed, self.rng = space.allowed, np.random.default_rng(seed)

    def draw(self, count: int, temperature: float = 1.0) -> list[Actions]:
        return [[(int(self.rng.choice(np.flatnonzero(row))), int(self.rng.integers(len(EMPHASES))))
                 for row in self.allowed] for _ in range(count)]

    def learn(self, proposals: Sequence[Actions], rewards: Sequence[float]) -> None:
        pass


class Untaught(controller.Controller):
    """A controller that does not learn."""

    def learn(self, proposals: Sequence[Actions], rewards: Sequence[float]) -> None:
        pass


PROPOSERS = {"search": controller.Controller, "around exact": Untaught, "random": Even}


class Task:
    """A network, its training photos in three parts, and its test photos."""

    def __init__(self, arguments: Any) -> None:
        self.file = arguments.folder / f"{arguments.network}.onnx"
        if not self.file.exists():
            export(arguments.network, self.file)
        graph = load_graph(self.file)
        self.network, self.model = Network(optimize(graph), Target.host()), GraphModule(graph).eval()
        recipe, (train, _) = Preprocess(resize=None, crop=None), cifar10(arguments.cifar, "train")
        test, self.labels = cifar10(arguments.cifar, "test")
        order = np.random.default_rng(0).permutation(len(train))

        def batches(pixels: Any) -> list[torch.Tensor]:
            inputs = [recipe.normalise(photo) for photo in pixels.transpose(0, 2, 3, 1)]
            return list(torch.from_numpy(np.stack(inputs)).split(50))

        self.fit, self.compare, self.other = (batches(train[order[start:start + count]]) for start, count in
                                              ((0, arguments.photos), (1000, arguments.compared), (3000, 2000)))
        self.test = batches(test[:arguments.test])

    def judged(self, model: nn.Module) -> tuple[float, float]:
        """(divergence from the dense network on unseen training photos, top-1 of the test photos in percent)."""
        with torch.no_grad():
            mine, wanted, answers = (torch.cat([net(x) for x in part]) for net, part in (
                (model, self.other), (self.model, self.other), (model, self.test)))
        loss = nn.functional.kl_div(mine.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
        right = answers.argmax(1).numpy() == self.labels[:len(answers)]
        return float(loss), 100 * float(right.mean())

    def of_plan(self, space: Space, candidate: Candidate) -> tuple[float, float]:
        """The same of the network pruned by a candidate."""
        cells, model = space.cells(candidate), copy.deepcopy(self.model)
        prune_oneshot_(model, Plan({layer.name: LayerPlan(*cells.get(layer.name, (DENSE, 1.0)))
                                    for layer in module_layers(model)}), self.fit)
        return self.judged(model)


def run(arguments: Any, rows: list[dict[str, Any]]) -> None:
    """Add the rows that are not there."""
    task = Task(arguments)
    table = LatencyTable(arguments.table, Target.host(), model=str(task.file))
    errors = layer_errors(task.model, task.fit, contenders(task.network, table),
                          store=arguments.folder / f"{arguments.network}.errors.json")
    space = Space.of(task.network, table, errors.costs, Goal(speedup=arguments.speedup), errors.alive)
    evaluator = OneShotLoss(task.model, task.fit, task.compare, share=arguments.share)

    def add(method: str, seed: int, **found: Any) -> None:
        rows.append({"network": arguments.network, "speedup": arguments.speedup, "method": method, "seed": seed,
                     "evaluations": arguments.evaluations} | found)
        write_text(arguments.folder / "search.json", json.dumps(rows, indent=1) + "\n")
        print(json.dumps(rows[-1]), flush=True)

    def known(method: str, seed: int) -> bool:
        key = {"network": arguments.network, "speedup": arguments.speedup, "method": method, "seed": seed,
               "evaluations": arguments.evaluations}
        return any(key.items() <= row.items() for row in rows)

    if not known("dense", 0):
        add("dense", 0, **dict(zip(("unseen", "test"), task.judged(task.model), strict=True)))
    if not known("exact", 0):
        exact = space.complete(space.neutral)
        add("exact", 0, short=evaluator(space.cells(exact)), thorough=evaluator(space.cells(exact), True),
            **dict(zip(("unseen", "test"), task.of_plan(space, exact), strict=True)))
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            if known(method, seed):
                continue
            start = time.process_time()
            journal = Journal(arguments.folder / f"{arguments.network}-{arguments.speedup:g}-{method}-{seed}.journal",
                              {"evaluator": evaluator.fingerprint, "space": space.digest})
            found = mapper.search(space, evaluator, PROPOSERS[method](space, seed), evaluations=arguments.evaluations,
                                  journal=journal)
            unseen, test = task.of_plan(space, found.best)
            add(method, seed, short=min(found.losses[1:]), thorough=found.loss, unseen=unseen, test=test,
                used=len(found.losses), cpu_s=round(time.process_time() - start),
                mean_of_last=float(np.mean(found.losses[-40:])))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    return f"{np.mean(values):.4g}" + (f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else "")


def table_of(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown, mean and spread over the seeds."""
    names = ("short", "thorough", "unseen", "test")
    lines = ["| network, goal | method | evaluations | best drawn, short | plan, in full | unseen photos | test, % |",
             "|---|---|---|---|---|---|---|"]
    groups = sorted({(row["network"], row["speedup"]) for row in rows})
    for network, speedup in groups:
        for method in ("dense", "exact", *METHODS):
            own = [row for row in rows if (row["network"], row["speedup"], row["method"]) == (network, speedup, method)]
            if own:
                used = "" if method in ("dense", "exact") else str(round(np.mean([row["used"] for row in own])))
                cells = [spread([row[name] for row in own if name in row]) for name in names]
                lines.append(f"| {network}, {speedup:g} x | {method} | {used} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("network", nargs="?", default="resnet20", choices=("resnet20", "resnet56"))
    parser.add_argument("--table", type=Path, required=True, help="latencies, from 'blockpunch profile'")
    parser.add_argument("--cifar", type=Path, default=Path("cifar-10-batches-py"))
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--evaluations", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--photos", type=int, default=300, help="to fit layers on")
    parser.add_argument("--compared", type=int, default=400, help="to compare candidates on")
    parser.add_argument("--share", type=float, default=SHARE, help="of the photos to fit on in an evaluation in short")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("out/search"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "search.json"
    rows = json.loads(results.read_text()) if results.exists() else []
    torch.set_num_threads(1)
    run(arguments, rows)
    print(table_of(rows))


if __name__ == "__main__":
    main()
