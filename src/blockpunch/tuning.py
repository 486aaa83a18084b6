"""Auto-tuning: every layer's schedules, measured inside the running network, where caches are as warm as they will be.

Each round compiles the whole network with the next untried schedule of every layer and runs it in turns with the
network that the model would build, so that both meet the same moments of a busy machine; each step's ratio counts.
After a few rounds each layer has its best. What was measured is appended to a store at once, keyed by the
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
import numpy.typing as npt

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
Seconds = npt.NDArray[np.float64]
_CANDIDATES = 12
_MARGIN = 0.98  # a schedule replaces the model's choice when it is measured at least 2 % faster
_RUNS, _RUN_S = 12, 1.5


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
        if not self._untried(program):
            return self._best(program)
        with self._session(program) as reference:
            stop = time.monotonic() + seconds
            for done in range(_CANDIDATES):
                untried = self._untried(program)
                if not untried or time.monotonic() > stop:
                    break
                if progress:
                    progress(f"tuning {len(untried)} layers, round {done + 1}", done / _CANDIDATES)
                trial = compile_graph(self.graph, self.target, threads_hint=self.threads,
                                      choices=self._best(program) | untried)
                with self._session(trial) as session:
                    self._record(program, trial, *_in_turns(reference, session))
        return self._best(program)

    def _untried(self, program: Program) -> dict[str, Choice]:
        """The next schedule to measure of each layer that has one; like layers share the work."""
        found: dict[str, Choice] = {}
        given: set[tuple[str, Choice]] = set()
        for name, options in program.options.items():
            known = self.store.seconds.get(options.key, {})
            for choice in options.choices[1:_CANDIDATES]:
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

    def _session(self, program: Program) -> Session:
        """The program, built and ready to run."""
        sources = {**program.source, **toolchain.runtime_sources()}
        built = toolchain.find_compiler(self.target).build(sources, self.target)
        return Session(Artifact.from_program(program, self.target, {}, built), threads=self.threads)

    def _record(self, program: Program, trial: Program, reference_s: Seconds, trial_s: Seconds) -> None:
        """Add what a trial took, at the pace at which the model's choice was measured first."""
        steps = {step.name: taken for step, taken in zip(program.steps, reference_s, strict=True)}
        for step, taken in zip(trial.steps, trial_s, strict=True):
            options = trial.options.get(step.name)
            if options is None or step.name not in steps:
                continue
            known, model = self.store.seconds.get(options.key, {}), options.choices[0]
            if model not in known:
                self.store.add(options.key, model, float(steps[step.name]))
            if options.chosen != model:
                pace = self.store.seconds[options.key][model] / steps[step.name]
                self.store.add(options.key, options.chosen, float(taken * pace))


def _in_turns(first: Session, second: Session) -> tuple[Seconds, Seconds]:
    """[steps] least seconds of each step of two sessions of one network, run alternately."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(item.shape, np.float32) for item in first.inputs]
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    for session in (first, second):
        session.run(inputs)
    stop = time.monotonic() + _RUN_S
    while len(times[0]) < _RUNS or (time.monotonic() < stop and len(times[0]) < 10 * _RUNS):
        for session, taken in zip((first, second), times, strict=True):
            taken.append(session.run_profiled(inputs)[1])
    return np.min(times[0], axis=0), np.min(times[1], axis=0)


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
