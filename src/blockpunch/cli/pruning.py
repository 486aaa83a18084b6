"""The verbs ``prune``, ``optimize`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockpunch.cli import show
from blockpunch.cli.options import Json, Output, Shape, check_output, parse_shapes
from blockpunch.errors import PlanError
from blockpunch.graph import load_graph
from blockpunch.layers import Layer, prunable_layers
from blockpunch.plan import Plan
from blockpunch.schemes import REGULARITIES, Scheme

OnnxModel = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
SchemeName = Annotated[str, typer.Option("--scheme", "-s", help=f"One of: {', '.join(REGULARITIES)}.")]
Block = Annotated[str | None, typer.Option("--block", metavar="PxQ", show_default=False,
                                           help="Block size, filters x channels, like 8x4.")]
Rate = Annotated[float, typer.Option("--rate", "-r", help="Weights before / weights kept, in each pruned layer.")]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="SELECTOR", show_default=False,
                                                help="Prune these layers only: name, glob or type.")]
Skip = Annotated[list[str] | None, typer.Option("--skip", metavar="SELECTOR", show_default=False,
                                                help="Leave these layers dense.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", show_default=False,
                                               help="A plan in JSON, in place of scheme and rate.")]


def make_plan(layers: list[Layer], model: str, plan: Path | None, scheme: str, block: str | None, rate: float,
              only: list[str] | None, skip: list[str] | None) -> Plan:
    """The plan that the options ask for."""
    if plan is not None:
        if only or skip:
            raise PlanError("a plan names its layers itself", where=str(plan), fix="leave out --only and --skip")
        loaded = Plan.load(plan)
        loaded.check(layers)
        return loaded
    return Plan.uniform(layers, Scheme.parse(scheme, block), rate, only=only or (), skip=skip or (), model=model)


def prune(
    model: OnnxModel,
    output: Output,
    scheme: SchemeName = "block-punched",
    block: Block = None,
    rate: Rate = 4.0,
    only: Only = None,
    skip: Skip = None,
    plan: PlanFile = None,
    save_plan: Annotated[Path | None, typer.Option("--save-plan", show_default=False,
                                                   help="Write the plan that was used, to be edited.")] = None,
    shape: Shape = None,
    json_: Json = None,
) -> None:
    """Prune an ONNX file: the least important groups of weights become zeros, the graph stays as it is."""
    from blockpunch.pruning.onnx_prune import onnx_layers, prune_onnx

    check_output(output)
    shapes = parse_shapes(shape)
    # With shapes the plan knows each layer's work; without, names and weights are enough.
    layers = prunable_layers(load_graph(model, shape=shapes)) if shapes else onnx_layers(model)
    chosen = make_plan(layers, model.name, plan, scheme, block, rate, only, skip)
    if save_plan is not None:
        chosen.save(save_plan)
    result = prune_onnx(model, chosen, output)
    if json_ is not None:
        show.write_json({"output": str(output), **result.to_dict()}, json_)
    if json_ == "-":
        return
    rows = [(c.name, "x".join(map(str, entry.shape)), str(entry.scheme), c.weights, c.kept,
             c.rate if c.kept else None, entry.reason)
            for c in result.layers for entry in [chosen.layers[c.name]]]
    rows.append(("all", "", "", result.weights, result.kept, result.rate if result.kept else None, ""))
    show.table(f"{model.name} -> {output}", ("layer", "weight", "scheme", "weights", "kept", "rate", "why"), rows)
