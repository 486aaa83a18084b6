"""Auto-tuning: every layer's schedules, measured inside the running network, where caches are as warm as they will be.

Each round compiles the whole network with the next untried schedule of every layer, runs it, and takes the time of
each step; after a few rounds each layer has its best. What was measured is appended to a store at once, keyed by the
layer's shape and zeros, the CPU and the version of the kernels: tuning can be interrupted, resumes, and a second
network with the same layers is tuned already.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from blockpunch import compiler
from blockpunch.artifact import Artifact
from blockpunch.atomic import make_folder
from blockpunch.compiler import Choice, Program, compile_graph, toolchain
from blockpunch.errors import TargetError
from blockpunch.graph import passes
from blockpunch.graph.ir import Graph
from blockpunch.runtime.session import Session
from blockpunch.target import Target

Progress = Callable[[str, float], None]
_CANDIDATES = 12
_MARGIN = 0.98  # a schedule replaces the model's choice when it is measured at least 2 % faster
_RUNS, _RUN_S = 12, 1.0


class Store:
    """Measured seconds per layer key and schedule, in one JSON-lines file per CPU and kernel version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, dict[Choice, float]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            record = json.loads(line)
            choice = Choice(**record["choice"])
            self.seconds.setdefault(record["key"], {})[choice] = float(record["seconds"])
        except (ValueError, KeyError, TypeError, IndexError):
            return  # the last line of an interrupted run

    def add(self, key: str, choice: Choice, seconds: float) -> None:
        """Remember a measurement, now and on disk."""
        self.seconds.setdefault(key, {})[choice] = seconds
        record = {"key": key, "choice": asdict(choice), "seconds": seconds}
        make_folder(self.path.parent)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Tuner:
    """Chooses schedules for one graph on one target."""

    def __init__(self, graph: Graph, target: Target, threads: int, store: Store | None = None) -> None:
        self.graph, self.target, self.threads = graph, target, threads
        self.store = store or Store(store_path(target, threads))

    def known(self) -> dict[str, Choice]:
        """Node name -> the best schedule measured before; layers never measured are left out."""
        if not self.store.seconds:
            return {}
        return self._best(compile_graph(self.graph, self.target, threads_hint=self.threads))

    def tune(self, seconds: float, progress: Progress | None = None) -> dict[str, Choice]:
        """Measure until every layer's schedules are known or the time is over; returns the best of each layer.

        Raises:
            TargetError: this machine cannot run code for the target.
        """
        runs_here, missing = self.target.runs_here()
        if not runs_here:
            raise TargetError(f"cannot tune for {self.target.name} here: this CPU lacks {', '.join(missing)}",
                              fix="tune on such a machine, or compile without tuning")
        program = compile_graph(self.graph, self.target, threads_hint=self.threads)
        stop = time.monotonic() + seconds
        for done in range(_CANDIDATES):
            untried = self._untried(program)
            if not untried or time.monotonic() > stop:
                break
            if progress:
                progress(f"tuning {len(untried)} layers, round {done + 1}", done / _CANDIDATES)
            trial = compile_graph(self.graph, self.target, threads_hint=self.threads,
                                  choices=self._best(program) | untried)
            for name, taken in self._measure(trial).items():
                self.store.add(trial.options[name].key, trial.options[name].chosen, taken)
        return self._best(program)

    def _untried(self, program: Program) -> dict[str, Choice]:
        """The next schedule to measure of each layer that has one; like layers share the work."""
        found: dict[str, Choice] = {}
        given: set[tuple[str, Choice]] = set()
        for name, options in program.options.items():
            known = self.store.seconds.get(options.key, {})
            for choice in options.choices[:_CANDIDATES]:
                if choice not in known and (options.key, choice) not in given:
                    found[name] = choice
                    given.add((options.key, choice))
                    break
        return found

    def _best(self, program: Program) -> dict[str, Choice]:
        best: dict[str, Choice] = {}
        for name, options in program.options.items():
            known = self.store.seconds.get(options.key, {})
            if known:
                choice = min(known, key=lambda c: known[c])
                model = known.get(options.choices[0])
                best[name] = options.choices[0] if model and known[choice] > _MARGIN * model else choice
        return best

    def _measure(self, program: Program) -> dict[str, float]:
        """Node name -> least seconds of its step over a few runs."""
        sources = {**program.source, **toolchain.runtime_sources()}
        built = toolchain.find_compiler(self.target).build(sources, self.target)
        artifact = Artifact.from_program(program, self.target, {}, built)
        rng = np.random.default_rng(0)
        inputs = [rng.standard_normal(shape, np.float32) for _, shape in program.inputs]
        with Session(artifact, threads=self.threads) as session:
            session.run(inputs)
            times: list[list[float]] = []
            stop = time.monotonic() + _RUN_S
            while len(times) < _RUNS or (time.monotonic() < stop and len(times) < 10 * _RUNS):
                times.append(session.run_profiled(inputs)[1])
        least = np.min(times, axis=0)
        return {step.name: float(t) for step, t in zip(program.steps, least, strict=True)
                if step.name in program.options}


def store_path(target: Target, threads: int) -> Path:
    """The file of measurements for this CPU, these kernels and so many threads, in the user's cache folder
    (``BLOCKPUNCH_CACHE`` names another)."""
    cache = os.environ.get("BLOCKPUNCH_CACHE")
    folder = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockpunch"
    name = hashlib.sha256(repr((_cpu(), target, kernel_version(), threads)).encode()).hexdigest()[:16]
    return folder / "schedules" / f"{target.name}-{name}.jsonl"


@cache
def kernel_version() -> str:
    """Changes with any file of the compiler and of the graph's passes: measurements of other kernels do not count."""
    digest = hashlib.sha256()
    folders = [Path(compiler.__file__).parent, Path(passes.__file__).parent]
    for path in sorted(path for folder in folders for kind in ("*.py", "*.j2") for path in folder.rglob(kind)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _cpu() -> str:
    """The CPU's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"
