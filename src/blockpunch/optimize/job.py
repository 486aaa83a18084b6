"""The main job: plan, prune, recover, compile, measure, report, in a folder in which it can be resumed."""

from __future__ import annotations

import copy
import json
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
from blockpunch.measure.bench import OURS, BenchResult, EngineResult, Entry, bench_entries
from blockpunch.measure.engines import ENGINES
from blockpunch.measure.layers import LayerTime, time_layers
from blockpunch.measure.machine import survey
from blockpunch.measure.quality import Check, Comparison, compare
from blockpunch.optimize.photos import Photos, batches, one_shot_photos
from blockpunch.optimize.source import Source
from blockpunch.optimize.workfolder import WorkFolder, fingerprint
from blockpunch.plan import Plan
from blockpunch.report import EngineTime, LayerFacts, ReportFacts, render
from blockpunch.runtime.session import Session
from blockpunch.schemes import Scheme
from blockpunch.target import Target

PRUNED, DENSE = "blockpunch, pruned", "blockpunch, dense"
_ONE_SHOT_BATCH = 32
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Settings:
    """What to do.

    ``plan`` overrides ``scheme``, ``rate``, ``only`` and ``skip``. ``minutes`` of distillation (0: none) need photos.
    ``tune`` is the time in seconds to measure schedules, for each of our two builds. ``engines`` are the peers to
    measure; ``seconds`` the measuring time for each.
    """

    scheme: str = "block-punched:8x4"
    rate: float = 4.0
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


@dataclass(frozen=True)
class Event:
    """Something to show: a line of ``text``, or how far a stage is (``done`` of ``total``, any unit)."""

    text: str
    done: float = 0.0
    total: float = 0.0


@dataclass
class Job:
    """The main job for one network. ``run()`` does what is not done yet and gives the facts of the report.

    Files in ``folder``: ``plan.json``, ``pruned.onnx``, ``dense.bp``, ``net.bp``, ``report.html``, ``state.json``.
    """

    source: Source
    folder: Path
    settings: Settings = field(default_factory=Settings)
    photos: Photos | None = None
    check: Check | None = None
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
        s, layers = self.settings, prunable_layers(self.source.graph)
        if s.plan is not None:
            if s.only or s.skip:
                raise PlanError("a plan names its layers itself", fix="leave out only and skip")
            plan = s.plan
            plan.check(layers)
        else:
            plan = Plan.uniform(layers, Scheme.parse(s.scheme), s.rate, only=s.only, skip=s.skip,
                                model=self.source.name)
        self._key = fingerprint(self.source.key, plan.to_json())
        plan.save(self.work.file("plan.json"))
        return plan

    def _prune(self, plan: Plan) -> dict[str, Any]:
        """One-shot, then distillation if asked for; ``pruned.onnx``."""
        s = self.settings
        self.onnx = self.work.file("pruned.onnx")
        if s.minutes > 0:
            assert self.photos is not None
            self._key = fingerprint(self._key, s.minutes, s.batch, s.learning_rate, s.seed, self.photos.size,
                                    list(self.photos.pixels.shape), int(self.photos.pixels.sum()))
            facts: dict[str, Any] = self.work.stage("recover", self._key, ["pruned.onnx"], lambda: self._recover(plan))
        else:
            facts = self.work.stage("prune", self._key, ["pruned.onnx"], lambda: self._one_shot(plan))
        return facts

    def _one_shot(self, plan: Plan) -> dict[str, Any]:
        self.source.prune(plan, self.onnx)
        return {**self._count(), "recovery": "Pruned in one shot, not recovered."}

    def _recover(self, plan: Plan) -> dict[str, Any]:
        import torch

        from blockpunch.pruning.graph_module import GraphModule
        from blockpunch.pruning.oneshot import first_images, prune_oneshot_
        from blockpunch.pruning.recover import Recipe, Status, distill
        from blockpunch.pruning.torch_prune import Pruner

        s, photos = self.settings, self.photos
        assert photos is not None
        student = GraphModule(self.source.graph)
        teacher = copy.deepcopy(student)

        def progress(status: Status) -> None:
            self.show(Event(f"distil: step {status.step}, loss {status.loss:.3f}", status.seconds, s.minutes * 60))

        pruner = Pruner(student, plan)
        checkpoint = self.work.file(f"recover-{self._key[:12]}.safetensors")
        if not checkpoint.exists():
            torch.manual_seed(s.seed)
            images = first_images(batches(photos, _ONE_SHOT_BATCH), one_shot_photos(photos.size))
            pruner.take(prune_oneshot_(student, plan, images, progress=lambda done, total, name: self.show(
                Event(f"one-shot: layer {done} of {total}", done, total))).masks)
        recipe = Recipe(epochs=100_000, minutes=s.minutes, optimizer="adam", seed=s.seed, lr=s.learning_rate,
                        warmup_steps=10)
        result = distill(pruner, teacher, batches(photos, s.batch), recipe=recipe, progress=progress,
                         checkpoint=checkpoint, checkpoint_seconds=20.0)
        pruner.finalize_()
        self.source.write(student.constants(), self.onnx)
        checkpoint.unlink(missing_ok=True)
        text = (f"Pruned in one shot by second-order errors, then distilled from the dense network for "
                f"{s.minutes:g} minutes ({result.steps} steps), on {photos.source}.")
        return {**self._count(), "recovery": text}

    def _count(self) -> dict[str, int]:
        """Weights of the prunable layers of what was written, and those that are not zero."""
        rows = summarize(self.source.read(self.onnx))
        return {"weights": sum(row.weights for row in rows), "kept": sum(row.kept_weights for row in rows)}

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
        layers = [_layer(row, plan, dense_ms.get(row.record.name)) for row in after]
        return ReportFacts(
            model=self.source.name, target=self.target.name, threads=self.settings.threads,
            created=time.strftime("%Y-%m-%d %H:%M"), version=metadata.version("blockpunch"), plan=_describe(plan),
            engines=engines, layers=layers, weights=weights["weights"], kept_weights=weights["kept"],
            dense_bytes=self.work.file("dense.bp").stat().st_size, pruned_bytes=self.work.file("net.bp").stat().st_size,
            machine=survey().to_json(), comparison=comparison, recovery=weights["recovery"],
            stages=dict(self.work.seconds), command=self.settings.command)


def _layer(row: LayerTime, plan: Plan, dense_ms: float | None) -> LayerFacts:
    record = row.record
    entry = plan.layers.get(record.name)
    return LayerFacts(
        name=record.name, kind=record.kind, shape=entry.shape if entry else (),
        scheme=str(entry.scheme) if entry else "", rate=entry.rate if entry else 1.0, macs=record.macs,
        kept_macs=record.kept_macs, dense_ms=dense_ms, ms=row.ms, peak_share=row.peak_share, packing=record.packing,
        reason=(entry.reason if entry else "") or record.reason)


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
