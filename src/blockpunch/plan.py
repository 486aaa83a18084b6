"""The plan: which scheme and rate each layer gets, where that came from and why. Printable, JSON, made to be edited."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockpunch.atomic import write_text
from blockpunch.errors import PlanError, SchemeError
from blockpunch.layers import Layer, choose, kept_dense_by_default, match, prunable_layers, select
from blockpunch.schemes import Scheme, check_rate

FORMAT = "blockpunch-plan"
VERSION = 1
DENSE = Scheme("dense")

__all__ = ["Layer", "LayerPlan", "Plan", "kept_dense_by_default", "prunable_layers", "select"]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Args:
        scheme: regularity and block size.
        rate: weights before / weights kept; 1 keeps all.
        shape: of the layer's weight, to tell a plan of another model; ``()`` where it does not matter.
        source: where the choice came from: 'default', 'uniform', 'user', or a mapper's name.
        reason: why, in a few words.
        latency_ms: predicted milliseconds of the layer on the target, where a mapper predicted them.

    Raises:
        SchemeError: a rate that the scheme cannot have.
    """

    scheme: Scheme
    rate: float = 1.0
    shape: tuple[int, ...] = ()
    source: str = "user"
    reason: str = ""
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        check_rate(self.scheme, self.rate)

    @property
    def prunes(self) -> bool:
        """Whether any weight is to be removed."""
        return self.scheme.prunes and self.rate > 1


@dataclass
class Plan:
    """Layer name -> :class:`LayerPlan`, for every prunable layer of one model, in the order in which they run."""

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    model: str = ""

    @classmethod
    def uniform(cls, layers: Sequence[Layer], scheme: Scheme | str, rate: float, *, only: Iterable[str] = (),
                skip: Iterable[str] = (), model: str = "") -> Plan:
        """One scheme and rate for all layers but those that are dense by default (see :mod:`blockpunch.layers`).

        Args:
            layers: the model's, from :func:`prunable_layers`.
            scheme: a scheme or its text, such as ``"block-punched:8x4"``.
            rate: weights before / weights kept, in each pruned layer.
            only: selectors of the layers to prune; none means all.
            skip: selectors of layers to leave dense.
            model: name to write into the plan.

        Raises:
            SelectorError: a selector matches nothing.
            SchemeError: impossible scheme or rate.
        """
        scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
        check_rate(scheme, rate)
        chosen, reasons = choose(layers, only, skip)
        entries = {}
        for layer in layers:
            if layer.name in chosen:
                entries[layer.name] = LayerPlan(scheme, float(rate), layer.shape, "uniform")
            else:
                source = "user" if reasons[layer.name] in ("skipped", "not selected") else "default"
                entries[layer.name] = LayerPlan(DENSE, 1.0, layer.shape, source, reasons[layer.name])
        return cls(entries, model)

    @classmethod
    def per_layer(cls, layers: Sequence[Layer], choices: Mapping[str, tuple[Scheme | str, float] | LayerPlan], *,
                  model: str = "") -> Plan:
        """A plan from a dictionary: selector -> ``(scheme, rate)``; later entries win, layers not named stay dense.

        A dictionary names its layers, so nothing is dense by default here.

        Raises:
            SelectorError: a selector matches nothing.
            SchemeError: impossible scheme or rate.
        """
        entries = {layer.name: LayerPlan(DENSE, 1.0, layer.shape, "user", "not selected") for layer in layers}
        for selector, choice in choices.items():
            if not isinstance(choice, LayerPlan):
                scheme, rate = choice
                choice = LayerPlan(Scheme.parse(scheme) if isinstance(scheme, str) else scheme, float(rate))
            for layer in match(layers, selector):
                entries[layer.name] = LayerPlan(choice.scheme, choice.rate, layer.shape, choice.source, choice.reason,
                                                choice.latency_ms)
        return cls(entries, model)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in a JSON file.

        Raises:
            PlanError: no such file, or not a plan; names the layer and field.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "it is not text"
            raise PlanError(f"cannot be read: {why}", where=str(path), fix="name a plan, as 'blockpunch map' or "
                            "'blockpunch prune' writes it") from error
        return cls.from_json(text, where=str(path))

    @classmethod
    def from_json(cls, text: str, *, where: str = "plan") -> Plan:
        """The plan in ``text``, as :meth:`to_json` writes it.

        Raises:
            PlanError: not JSON, another version, an unknown or missing field, a value that is not possible.
        """
        try:
            data = json.loads(text, object_pairs_hook=_no_duplicates)
        except ValueError as error:
            cut = isinstance(error, json.JSONDecodeError) and (error.msg.startswith("Unterminated string")
                                                               or not text[error.pos:].strip())
            raise PlanError(f"not JSON: {error}" + ("; the file seems to be cut off" if cut else ""), where=where,
                            fix="take a whole copy, or make the plan anew" if cut else
                            "mend it there (often a comma, a quote or a bracket), or make the plan anew") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError("not a plan", where=where, fix=f'a plan is a JSON object with "format": "{FORMAT}"')
        if data.get("version") != VERSION:
            raise PlanError(f"version {data.get('version')!r} of the format, this program reads {VERSION}", where=where,
                            fix="make the plan anew with this version of blockpunch")
        _known_fields(data, {"format", "version", "model", "layers"}, where)
        layers = data.get("layers")
        if not isinstance(layers, dict):
            raise PlanError("field 'layers' must be an object: layer name -> scheme and rate", where=where,
                            fix=f'for example "layers": {{"conv1": {EXAMPLE}}}')
        model = _text(data, "model", where)
        return cls({name: _read_layer(entry, f"{where}, layer '{name}'") for name, entry in layers.items()}, model)

    def to_json(self) -> str:
        """JSON text with one line per layer."""
        lines = [f"    {json.dumps(name)}: {json.dumps(_write_layer(entry))}" for name, entry in self.layers.items()]
        return (f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n  "model": {json.dumps(self.model)},\n'
                '  "layers": {\n' + ",\n".join(lines) + "\n  }\n}\n")

    def save(self, path: str | Path) -> None:
        """Write JSON to ``path``, whole or not at all.

        Raises:
            OutputError: the file cannot be written.
        """
        write_text(path, self.to_json())

    def check(self, layers: Sequence[Layer]) -> None:
        """Nothing where this plan is for the model whose ``layers`` are given.

        Raises:
            PlanError: layers are missing, or the model does not have them, or a weight has another shape.
        """
        known = {layer.name: layer for layer in layers}
        missing = [name for name in known if name not in self.layers]
        extra = [name for name in self.layers if name not in known]
        if missing or extra:
            near = difflib.get_close_matches(extra[0], missing, n=1) if extra else []
            parts = [f"the model has no layer {_listed(extra)}" + (f" (did you mean '{near[0]}'?)" if near else "")
                     ] if extra else []
            parts += [f"the plan leaves out {_listed(missing)}"] if missing else []
            raise PlanError("the plan is for another model: " + "; ".join(parts), where=self.model or None,
                            fix='make the plan anew for this model; a layer to leave alone is "scheme": "dense"')
        for name, entry in self.layers.items():
            if entry.shape and entry.shape != known[name].shape:
                raise PlanError(f"the plan is for another model: the weight is {list(known[name].shape)}, "
                                f"the plan says {list(entry.shape)}", where=f"layer '{name}'",
                                fix="make the plan anew for this model")

    def pruned(self) -> dict[str, LayerPlan]:
        """The layers that lose weights."""
        return {name: entry for name, entry in self.layers.items() if entry.prunes}

    def effect(self) -> list[tuple[str, str, float]]:
        """(layer, scheme, rate) of the layers it prunes: plans of one effect differ in their reasons alone."""
        return [(name, str(entry.scheme), entry.rate) for name, entry in self.pruned().items()]

    def __str__(self) -> str:
        rows = [("layer", "weight", "scheme", "rate", "source", "reason")]
        for name, entry in self.layers.items():
            shape = "x".join(str(size) for size in entry.shape)
            rows.append((name, shape, str(entry.scheme), f"{entry.rate:g}", entry.source, entry.reason))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                         for row in rows)


EXAMPLE = '{"scheme": "block-punched:8x4", "rate": 4}'
FIELDS = {"scheme", "rate", "shape", "source", "reason", "latency_ms"}


def _read_layer(entry: Any, where: str) -> LayerPlan:
    if not isinstance(entry, dict):
        raise PlanError("must be an object with a scheme and a rate", where=where, fix=f"for example {EXAMPLE}")
    _known_fields(entry, FIELDS, where)
    if not isinstance(entry.get("scheme"), str):
        raise PlanError("field 'scheme' is missing or not text", where=where, fix='for example "block-punched:8x4"')
    shape, latency = entry.get("shape", []), entry.get("latency_ms")
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise PlanError("field 'shape' must be a list of whole numbers", where=where,
                        fix="leave it out, or write the weight's shape, such as [64, 32, 3, 3]")
    if latency is not None and (isinstance(latency, bool) or not isinstance(latency, int | float)):
        raise PlanError("field 'latency_ms' must be a number", where=where, fix="leave it out: it only informs")
    try:
        scheme = Scheme.parse(entry["scheme"])
        rate = entry.get("rate", 1.0)
        return LayerPlan(scheme, rate, tuple(shape), _text(entry, "source", where) or "user",
                         _text(entry, "reason", where), latency)
    except SchemeError as error:
        raise PlanError(error.what, where=where, fix=str(error).partition("-> ")[2] or None) from error


def _write_layer(entry: LayerPlan) -> dict[str, Any]:
    fields: dict[str, Any] = {"scheme": str(entry.scheme), "rate": entry.rate}
    if entry.shape:
        fields["shape"] = list(entry.shape)
    fields["source"] = entry.source
    if entry.reason:
        fields["reason"] = entry.reason
    if entry.latency_ms is not None:
        fields["latency_ms"] = entry.latency_ms
    return fields


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is given twice")
    return dict(pairs)


def _known_fields(data: dict[str, Any], known: set[str], where: str) -> None:
    for name in data:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise PlanError(f"unknown field '{name}'" + (f"; did you mean '{near[0]}'?" if near else ""), where=where,
                            fix=f"known fields: {', '.join(sorted(known))}")


def _text(data: dict[str, Any], name: str, where: str) -> str:
    value = data.get(name, "")
    if not isinstance(value, str):
        raise PlanError(f"field '{name}' must be text", where=where, fix="put it in quotes, or leave it out")
    return value


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
