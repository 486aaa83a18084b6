"""The main job: plan, prune, recover, compile, measure, report, in a folder in which it can be resumed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from blockpunch.artifact import Artifact
from blockpunch.atomic import write_text
from blockpunch.build import compile as compile_model
from blockpunch.errors import DataError, PlanError
from blockpunch.graph.ir import Graph
from blockpunch.graph.summary import summarize
from blockpunch.layers import prunable_layers
from blockpunch.mapping import Goal
from blockpunch.measure.bench import OURS, BenchResult, EngineResult, Entry, bench_entries
from blockpunch.measure.engines import ENGINES
from blockpunch.measure.layers import LayerTime, time_layers
from blockpunch.measure.machine import survey
from blockpunch.measure.quality import Check, Comparison, compare
from blockpunch.optimize.event import Event
from blockpunch.optimize.mapping import MappingStages, tried_file
from blockpunch.optimize.photos import Photos
from blockpunch.optimize.recovery import Recovery
from blockpunch.optimize.source import Source
from blockpunch.optimize.workfolder import WorkFolder, fingerprint
from blockpunch.plan import Plan
from blockpunch.report import EngineTime, LayerFacts, MappingFacts, ReportFacts, render
from blockpunch.runtime.session import Session
from blockpunch.schemes import Scheme
from blockpunch.target import Target

PRUNED, DENSE = "blockpunch, pruned", "blockpunch, dense"
UNIFORM, UNIFORM_RATE = "block-punched:8x4", 4.0
"""Where one of scheme and rate is given, and the other one is not."""
SPEEDUP = 1.5
"""The goal where none is given."""
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Settings:
    """What to do.

    ``goal`` is what the mapping chooses a plan for (default: :data:`SPEEDUP`), from latencies in the file ``table``
    (default: in the cache), measured for ``profile_seconds`` at most. A ``plan``, or ``scheme`` and ``rate`` (for the
    layers of ``only`` without ``skip``), take its place. ``minutes`` of distillation (0: none) need photos.
    ``tune`` is the time in seconds to measure schedules, for each of our two builds. ``engines`` are the peers to
    measure; ``seconds`` the measuring time for each.
    """

    goal: Goal | None = None
    table: Path | None = None
    profile_seconds: float = math.inf
    scheme: str | None = None
    rate: float | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    plan: Plan | None = None
    target: str = "host"
    threads: int = 1
    minutes: float = 0.0
    batch: int = 16
    learning_rate: float | None = None
    tune: float = 0.0
    engines: tuple[str, ...] = ("onnxruntime",)
    seconds: float = 3.0
    seed: int = 0
    command: str = ""


@dataclass
class Job:
    """The main job for one network. ``run()`` does what is not done yet and gives the facts of the report.

    ``photos`` are unlabelled, to choose, prune and distil on. On ``held_out`` plans are tried where the goal is an
    accuracy (default: part of the photos); ``check`` is the test set, which only the report sees.
    Files in ``folder``: ``plan.json``, ``pruned.onnx``, ``dense.bp``, ``net.bp``, ``report.html``, ``state.json``.
    """

    source: Source
    folder: Path
    settings: Settings = field(default_factory=Settings)
    photos: Photos | None = None
    check: Check | None = None
    held_out: Check | None = None
    show: Callable[[Event], None] = lambda event: None

    def run(self) -> ReportFacts:
        """Do all stages that are not finished.

        Raises:
            BlockpunchError: any stage's own; finished stages stay finished.
        """
        self.work = WorkFolder(self.folder, lambda text: self.show(Event(text)))
        self.target = Target.named(self.settings.target)
        if self.settings.minutes > 0 and self.photos is None:
            raise DataError("distillation needs photos", fix="give a folder of photos, or no minutes")
        outputs = math.prod(self.source.graph.shape(self.source.graph.outputs[0]))
        for images in (self.check, self.held_out):  # now, and not when all the work is done
            if images is not None:
                images.fits(outputs)
        plan = self._plan()
        weights = self._prune(plan)
        self._compile()
        bench = self._bench()
        before, after = self._time_layers()
        comparison = self._compare()
        facts = self._facts(plan, weights, bench, before, after, comparison)
        write_text(self.work.file("report.json"), json.dumps(facts.to_json(), indent=1) + "\n")
        write_text(self.work.file("report.html"), render(facts))
        self.show(Event(f"report: {self.work.file('report.html')}"))
        return facts

    def _plan(self) -> Plan:
        """The plan that was given, a uniform one, or by default one that is chosen for the goal."""
        s, layers = self.settings, prunable_layers(self.source.graph)
        if s.goal is not None and (s.plan is not None or s.scheme is not None or s.rate is not None):
            raise PlanError("a goal is for a plan that is chosen", fix="leave out the goal, or plan, scheme and rate")
        self.mapping: MappingFacts | None = None
        if s.plan is not None:
            if s.only or s.skip:
                raise PlanError("a plan names its layers itself", fix="leave out only and skip")
            plan = s.plan
            plan.check(layers)
        elif s.scheme is not None or s.rate is not None:
            plan = Plan.uniform(layers, Scheme.parse(s.scheme or UNIFORM), UNIFORM_RATE if s.rate is None else s.rate,
                                only=s.only, skip=s.skip, model=self.source.name)
        else:
            if s.only or s.skip:
                raise PlanError("the mapping chooses the layers itself", fix="leave out only and skip")
            mapping = MappingStages(self.work, self.source, self.target, s.threads, s.goal or Goal(speedup=SPEEDUP),
                                    self.photos, self.held_out, s.table, s.profile_seconds, self.show)
            plan, self.mapping = mapping.run()
        self._key = fingerprint(self.source.key, plan.to_json())
        plan.save(self.work.file("plan.json"))
        return plan

    def _prune(self, plan: Plan) -> dict[str, Any]:
        """``pruned.onnx``: by magnitude, or with photos by second-order errors, then distilled if there is time."""
        s, photos = self.settings, self.photos
        self.onnx = self.work.file("pruned.onnx")

        def by_magnitude() -> dict[str, Any]:
            self.source.prune(plan, self.onnx)
            return self._count("Pruned in one shot by magnitude, not recovered.")

        if photos is None:
            return dict(self.work.stage("prune", self._key, ["pruned.onnx"], by_magnitude))
        recovery = Recovery(self.source, plan, photos, s.minutes, s.batch, s.learning_rate, s.seed, self.show)
        self._key = fingerprint(self._key, s.seed, photos.facts())
        one_shot = self.work.file("one-shot.safetensors")
        self.work.stage("prune", self._key, [one_shot.name],
                        lambda: recovery.one_shot(one_shot, tried_file(self.work, self.source, photos, plan)))
        self._key = fingerprint(self._key, s.minutes, s.batch, s.learning_rate)
        checkpoint = self.work.file(f"recover-{self._key[:12]}.safetensors")
        return dict(self.work.stage("recover", self._key, ["pruned.onnx"],
                                    lambda: self._count(recovery.run(self.onnx, one_shot, checkpoint))))

    def _count(self, recovery: str) -> dict[str, Any]:
        """Weights of the prunable layers of what was written, those that are not zero, and how they were made."""
        rows = summarize(self.source.read(self.onnx))
        return {"weights": sum(row.weights for row in rows), "kept": sum(row.kept_weights for row in rows),
                "recovery": recovery}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.source.graph.shape(name) for name in self.source.graph.inputs}

    def _compile(self) -> None:
        facts = [self.target.to_dict(), self.settings.threads, self.settings.tune, metadata.version("blockpunch")]
        self._compiled = fingerprint(self._key, *facts)

        def build(graph: Graph, file: str) -> dict[str, Any]:
            artifact = compile_model(graph, target=self.target, threads=self.settings.threads,
                                     tune_s=self.settings.tune,
                                     progress=lambda text, done: self.show(Event(text, done, 1.0)))
            artifact.save(self.work.file(file))
            return {}

        self.work.stage("compile dense", fingerprint(self.source.key, *facts), ["dense.bp"],
                        lambda: build(self.source.graph, "dense.bp"))
        self.work.stage("compile", self._compiled, ["net.bp"], lambda: build(self.source.read(self.onnx), "net.bp"))

    def _bench(self) -> BenchResult | None:
        """Our two builds and the peers on the dense model, in one run; None for a target that is not this machine."""
        if not self.target.runs_here()[0]:
            return None
        dense = self.source.dense_onnx(self.folder)
        entries = [Entry(PRUNED, OURS, self.work.file("net.bp"), self.onnx),
                   Entry(DENSE, OURS, self.work.file("dense.bp"), dense)]
        entries += [Entry(_NAMES.get(name, name), name, dense) for name in self.settings.engines if name != OURS]
        versions = {name: ENGINES[name].version() for name in self.settings.engines if name in ENGINES}
        key = fingerprint(self._compiled, [e.label for e in entries], versions, self.settings.seconds)
        facts = self.work.stage("bench", key, [], lambda: bench_entries(
            self.source.name, entries, threads=self.settings.threads, shapes=self._shapes(),
            seconds=self.settings.seconds, progress=lambda text: self.show(Event(text))).to_json())
        results = {name: EngineResult(**result) for name, result in facts.pop("engines").items()}
        facts.pop("speedups")
        return BenchResult(engines=results, **facts)

    def _time_layers(self) -> tuple[list[LayerTime], list[LayerTime]]:
        """Layers of our dense build and of the pruned one."""
        here = self.target.runs_here()[0]

        def look() -> list[list[dict[str, Any]]]:
            artifacts = (Artifact.load(self.work.file(name)) for name in ("dense.bp", "net.bp"))
            s = self.settings
            rows = (time_layers(a, threads=s.threads, seconds=min(1.0, s.seconds)) if here else
                    [LayerTime(record) for record in a.layers] for a in artifacts)
            return [[row.to_json() for row in part] for part in rows]

        before, after = self.work.stage("layers", self._compiled, [], look)
        return [LayerTime.from_json(row) for row in before], [LayerTime.from_json(row) for row in after]

    def _compare(self) -> Comparison | None:
        check = self.check
        if check is None or not self.target.runs_here()[0]:
            return None

        def look() -> dict[str, Any]:
            with Session(self.work.file("dense.bp")) as dense, Session(self.work.file("net.bp")) as pruned:
                return asdict(compare(dense, pruned, check,
                                      lambda done, total: self.show(Event("comparing", done, total))))

        return Comparison(**self.work.stage("compare", fingerprint(self._compiled, check.facts()), [], look))

    def _facts(self, plan: Plan, weights: dict[str, Any], bench: BenchResult | None, before: list[LayerTime],
               after: list[LayerTime], comparison: Comparison | None) -> ReportFacts:
        roles = {PRUNED: "pruned", DENSE: "dense"}
        engines = [] if bench is None else [
            EngineTime(name, roles.get(name, "peer"), r.median_ms, r.min_ms, r.spread, r.max_rel_error, r.version)
            for name, r in bench.engines.items()]
        dense_ms = {row.record.name: row.ms for row in before}
        predicted = self.mapping.layers if self.mapping else {}
        layers = [_layer(row, plan, dense_ms.get(row.record.name), predicted.get(row.record.name)) for row in after]
        return ReportFacts(
            model=self.source.name, target=self.target.name, threads=self.settings.threads,
            created=time.strftime("%Y-%m-%d %H:%M"), version=metadata.version("blockpunch"), plan=_describe(plan),
            engines=engines, layers=layers, weights=weights["weights"], kept_weights=weights["kept"],
            dense_bytes=self.work.file("dense.bp").stat().st_size, pruned_bytes=self.work.file("net.bp").stat().st_size,
            machine=survey().to_json(), comparison=comparison, recovery=weights["recovery"],
            stages=dict(self.work.seconds), command=self.settings.command, mapping=self.mapping)


def _layer(row: LayerTime, plan: Plan, dense_ms: float | None, predicted_ms: float | None) -> LayerFacts:
    record = row.record
    entry = plan.layers.get(record.name)
    return LayerFacts(
        name=record.name, kind=record.kind, shape=entry.shape if entry else (),
        scheme=str(entry.scheme) if entry else "", rate=entry.rate if entry else 1.0, macs=record.macs,
        kept_macs=record.kept_macs, dense_ms=dense_ms, ms=row.ms, peak_share=row.peak_share, packing=record.packing,
        reason=(entry.reason if entry else "") or record.reason, predicted_ms=predicted_ms)


def _describe(plan: Plan) -> str:
    """The plan in a few words."""
    pruned = list(plan.pruned().values())
    kinds = sorted({f"{entry.scheme} at rate {entry.rate:g}" for entry in pruned})
    if not kinds:
        return "nothing pruned"
    what = kinds[0] if len(kinds) == 1 else f"{len(kinds)} schemes and rates"
    return f"{what}, {len(pruned)} of {len(plan.layers)} layers"


def rerender(folder: Path) -> Path:
    """Draw ``report.html`` again from the facts that a finished job left in ``folder``.

    Raises:
        DataError: no finished job there.
    """
    try:
        facts = ReportFacts.from_json(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no finished job here ({type(error).__name__})", where=str(folder),
                        fix="run blockpunch optimize first") from None
    write_text(folder / "report.html", render(facts))
    return folder / "report.html"
