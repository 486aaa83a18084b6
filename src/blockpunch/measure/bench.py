"""Engines side by side in one process: interleaved rounds, pinned, outputs compared with ONNX Runtime's.

A round gives every engine the same slice of time, in rotated order, so that a busy moment of the machine hits all of
them alike. With one thread the clock is the process's CPU time (an isolated engine's: that of its own process), which
other programs cannot lengthen; with more it is the wall clock.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blockpunch.errors import BenchmarkError, MissingExtraError
from blockpunch.measure.engines import ENGINES, Array, Runner, Shapes, engine, random_inputs
from blockpunch.measure.engines.onnxruntime import OnnxRuntimeRunner
from blockpunch.measure.engines.remote import RemoteRunner
from blockpunch.measure.pinning import pinned

log = logging.getLogger(__name__)
Progress = Callable[[str], None]
OURS = "blockpunch"
ROUNDING = 1e-6
"""What float32 loses in a sigmoid or softmax, whose terms are of the size of 1."""


@dataclass(frozen=True)
class EngineResult:
    """One engine's times. ``spread`` is the interquartile range over the median; no error without a reference."""

    median_ms: float
    min_ms: float
    runs: int
    max_rel_error: float | None
    version: str
    spread: float
    model: str


@dataclass(frozen=True)
class BenchResult:
    """A measurement of several engines in one run. ``left_out``: peers that could not take part, and why."""

    model: str
    threads: int
    engines: dict[str, EngineResult]
    clock: str
    cores: list[int] = field(default_factory=list)
    seconds: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)

    def best_peer(self) -> str | None:
        """The fastest engine other than ours, or None."""
        peers = {name: result.median_ms for name, result in self.engines.items() if name != OURS}
        return min(peers, key=lambda name: peers[name]) if peers else None

    def speedups(self) -> dict[str, float]:
        """For each peer: its median time over ours. Empty when we did not run."""
        if OURS not in self.engines:
            return {}
        ours = self.engines[OURS].median_ms
        return {name: result.median_ms / ours for name, result in self.engines.items() if name != OURS}

    def to_json(self) -> dict[str, Any]:
        """Plain data: ``model``, ``threads``, ``engines`` and a few facts more."""
        data = asdict(self)
        data["speedups"] = self.speedups()
        return data


@dataclass(frozen=True)
class Entry:
    """What takes part: ``engine`` runs ``path`` under the name ``label``; ``reference`` is the ONNX file of the same
    network, for its outputs (``path`` itself where that is one); ``tolerance`` replaces the measurement's own."""

    label: str
    engine: str
    path: Path
    reference: Path | None = None
    tolerance: float | None = None


@dataclass
class _Contestant:
    entry: Entry
    runner: Runner
    feed: Mapping[str, Array]
    error: float | None
    times: list[int] = field(default_factory=list)


def relative_error(outputs: Sequence[Array], reference: Sequence[Array]) -> float:
    """Largest absolute difference over the largest absolute reference value, over all outputs together.

    A difference of at most :data:`ROUNDING` is held against a thousandth at least: probabilities that are all but zero
    differ by as much between any two engines.

    Raises:
        BenchmarkError: another number of outputs, or other shapes.
    """
    if len(outputs) != len(reference) or any(a.shape != b.shape for a, b in zip(outputs, reference, strict=False)):
        raise BenchmarkError(f"outputs of shapes {[o.shape for o in outputs]}, expected {[r.shape for r in reference]}")
    difference = max(float(np.max(np.abs(a.astype(np.float64) - b), initial=0)) for a, b in
                     zip(outputs, reference, strict=True))
    largest = max(float(np.max(np.abs(r), initial=0)) for r in reference)
    return difference / max(largest, 1e-3) if difference <= ROUNDING else difference / (largest or 1.0)


class Reference:
    """ONNX Runtime's outputs for each model file, computed once; knows nothing where it is not installed."""

    def __init__(self, shapes: Shapes | None, inputs: Mapping[str, Array] | None = None) -> None:
        self._shapes, self._given = shapes, inputs
        self._known: dict[Path, tuple[dict[str, Array], list[Array]]] = {}

    def outputs(self, path: Path) -> list[Array] | None:
        """Outputs of a model file, or None where there is no telling."""
        found = self._load(path)
        return found[1] if found else None

    def inputs(self, path: Path) -> dict[str, Array] | None:
        """The arrays that the outputs belong to."""
        found = self._load(path)
        return found[0] if found else None

    def _load(self, path: Path) -> tuple[dict[str, Array], list[Array]] | None:
        if path.suffix != ".onnx":
            return None
        if path not in self._known:
            try:
                runner = OnnxRuntimeRunner(path, 1)
            except MissingExtraError:
                return None
            inputs = dict(self._given) if self._given else random_inputs(runner.shapes(self._shapes))
            self._known[path] = (inputs, [np.array(output) for output in runner.run(inputs)])
            runner.close()
        return self._known[path]


def bench(model: Path, engines: Sequence[str], *, threads: int = 1, peer_model: Path | None = None,
          shapes: Shapes | None = None, inputs: Mapping[str, Array] | None = None, seconds: float = 3.0,
          tolerance: float = 1e-3, progress: Progress | None = None) -> BenchResult:
    """Measure ``model`` (``.onnx``; ours reads ``.bp`` too) in the named engines.

    A peer that cannot run the file, or whose outputs disagree, is left out; ours has to be right.

    Args:
        model: the file that every engine runs, but for peers when ``peer_model`` is given (the dense file, say).
        engines: names from :data:`~blockpunch.measure.engines.ENGINES`.
        threads: computing threads, and cores that the process is held to.
        peer_model: what the engines other than ours run.
        shapes: input name -> shape, for models with dynamic dimensions.
        inputs: arrays to run; random ones otherwise.
        seconds: measuring time for each engine.
        tolerance: the largest relative error that counts as the same result.
        progress: called with a line of text when something takes long.

    Raises:
        BenchmarkError: an unknown engine, or a failure or outputs that disagree in ours or in all there are.
        MissingExtraError: an engine that is not installed.
    """
    if not engines:
        raise BenchmarkError("no engine to measure", fix=f"--engines with some of: {', '.join(ENGINES)}")
    entries = [Entry(name, name, peer_model if peer_model is not None and name != OURS else model)
               for name in dict.fromkeys(engines)]
    return bench_entries(str(model), entries, threads=threads, shapes=shapes, inputs=inputs, seconds=seconds,
                         tolerance=tolerance, progress=progress)


def bench_entries(title: str, entries: Sequence[Entry], *, threads: int = 1, shapes: Shapes | None = None,
                  inputs: Mapping[str, Array] | None = None, seconds: float = 3.0, tolerance: float = 1e-3,
                  progress: Progress | None = None) -> BenchResult:
    """Like :func:`bench`, for any mix of engines and files; results are under the entries' labels."""
    say = progress or log.info
    if threads < 1:
        raise BenchmarkError(f"{threads} threads cannot compute anything", fix="--threads 1 or more")
    for entry in entries:
        _check_entry(entry)
    started = time.monotonic()
    contestants: list[_Contestant] = []
    left_out: dict[str, str] = {}
    with pinned(threads) as cores:
        try:
            reference = Reference(shapes, inputs)
            for entry in entries:
                say(f"preparing {entry.label}")
                try:
                    contestants.append(_enter(entry, threads, shapes, reference, tolerance))
                except BenchmarkError as error:
                    if entry.engine == OURS or len(left_out) + 1 == len(entries):
                        raise
                    left_out[entry.label] = str(error)
                    say(f"{entry.label} is left out: {error}")
            _measure(contestants, threads, seconds, say)
        finally:
            for contestant in contestants:
                contestant.runner.close()
    results = {c.entry.label: _summary(c) for c in contestants}
    return BenchResult(title, threads, results, "cpu" if threads == 1 else "wall", cores,
                       round(time.monotonic() - started, 1), left_out)


def _check_entry(entry: Entry) -> None:
    """Refuse what cannot work before anything slow is done."""
    row = engine(entry.engine)
    if not entry.path.is_file():
        raise BenchmarkError("no such file", where=str(entry.path))
    if entry.path.suffix not in row.suffixes:
        raise BenchmarkError(f"{row.name} reads {' and '.join(row.suffixes)} files", where=str(entry.path),
                             fix=f"leave {row.name} out, or give the peers a file with --peer-model")
    if row.version() is None:
        raise row.missing()


def _enter(entry: Entry, threads: int, shapes: Shapes | None, reference: Reference, tolerance: float) -> _Contestant:
    """Prepare one engine and check its outputs before any time is measured."""
    row = engine(entry.engine)
    runner: Runner = RemoteRunner(row, entry.path, threads, shapes) if row.isolated else \
        row.prepare(entry.path, threads, shapes)
    try:
        return _compared(entry, runner, reference, tolerance)
    except BaseException:
        runner.close()
        raise


def _compared(entry: Entry, runner: Runner, reference: Reference, tolerance: float) -> _Contestant:
    """Run once; an engine whose outputs are wrong does not take part."""
    expected = reference.outputs(entry.reference or entry.path)
    feed = reference.inputs(entry.reference or entry.path) or _own_inputs(entry, runner)
    if expected is None:
        return _Contestant(entry, runner, feed, None)
    error = relative_error([np.asarray(output) for output in runner.run(feed)], expected)
    if not error <= (tolerance if entry.tolerance is None else entry.tolerance):
        raise BenchmarkError(f"{entry.label} disagrees with ONNX Runtime by {error:.2g} of the largest output",
                             where=str(entry.path),
                             fix="its time would mean nothing; --tolerance accepts a larger difference")
    return _Contestant(entry, runner, feed, error)


def _own_inputs(entry: Entry, runner: Runner) -> dict[str, Array]:
    """Random inputs for a file that only our own engine reads."""
    session = getattr(runner, "session", None)
    if session is None:
        raise BenchmarkError("the shapes of the inputs are not known", where=str(entry.path),
                             fix="pip install 'blockpunch[bench]'")
    return random_inputs({spec.name: spec.shape for spec in session.inputs})


def _measure(contestants: Sequence[_Contestant], threads: int, seconds: float, say: Progress) -> None:
    """Rounds of equal slices in rotated order, until every engine had its time."""
    clock = "cpu" if threads == 1 else "wall"
    for contestant in contestants:
        contestant.runner.sample(contestant.feed, clock, 0.1)
    rounds = max(4, math.ceil(seconds / 0.3))
    say(f"measuring {', '.join(c.entry.label for c in contestants)} in {rounds} rounds")
    for number in range(rounds):
        turn = number % len(contestants)
        for contestant in [*contestants[turn:], *contestants[:turn]]:
            contestant.times += contestant.runner.sample(contestant.feed, clock, seconds / rounds)


def _summary(contestant: _Contestant) -> EngineResult:
    times = sorted(contestant.times)
    median = statistics.median(times)
    quarter = len(times) // 4
    spread = (times[-1 - quarter] - times[quarter]) / median if median else 0.0
    return EngineResult(median_ms=median / 1e6, min_ms=times[0] / 1e6, runs=len(times), max_rel_error=contestant.error,
                        version=contestant.runner.version, spread=round(spread, 4), model=str(contestant.entry.path))
