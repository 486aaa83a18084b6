"""Plans: selectors, the default rule, JSON that a person edits, plans of another model."""

import json

import numpy as np
import pytest

from blockpunch.errors import OutputError, PlanError, SchemeError, SelectorError
from blockpunch.graph.ir import Graph, Node, Value
from blockpunch.layers import Layer, choose, kept_dense_by_default, prunable_layers, select
from blockpunch.plan import LayerPlan, Plan
from blockpunch.schemes import Scheme

LAYERS = [
    Layer("stem", "conv", (16, 3, 3, 3)), Layer("body.0.expand", "conv", (32, 16, 1, 1)),
    Layer("body.0.depth", "conv", (32, 1, 3, 3), conv_groups=32), Layer("body.0.project", "conv", (16, 32, 1, 1)),
    Layer("body.1.conv", "conv", (16, 16, 3, 3)), Layer("head.0", "linear", (64, 16)),
    Layer("head.1", "linear", (10, 64)),
]


def names(layers):
    return [layer.name for layer in layers]


def test_selectors():
    assert names(select(LAYERS, ["body.1.conv"])) == ["body.1.conv"]
    assert names(select(LAYERS, ["body.0.*"])) == ["body.0.expand", "body.0.depth", "body.0.project"]
    assert names(select(LAYERS, ["linear", "conv1x1"])) == ["body.0.expand", "body.0.project", "head.0", "head.1"]
    assert names(select(LAYERS, ["depthwise"])) == ["body.0.depth"]
    assert len(select(LAYERS, ["conv"])) == 5 and len(select(LAYERS, ["conv3x3"])) == 3
    odd = [Layer("/a[0]/Conv", "conv", (4, 4, 1, 1)), Layer("conv", "linear", (2, 2))]
    assert names(select(odd, ["/a[0]/Conv"])) == ["/a[0]/Conv"], "an exact name is no glob"
    assert names(select(odd, ["conv"])) == ["conv"], "an exact name goes before a type"


def test_a_selector_that_matches_nothing_names_the_near_ones():
    with pytest.raises(SelectorError, match=r"no layer matches 'body.1.cnov'[\s\S]*near names: body.1.conv"):
        select(LAYERS, ["stem", "body.1.cnov"])
    with pytest.raises(SelectorError):
        Plan.uniform(LAYERS, "filter", 2, skip=["tail*"])
    with pytest.raises(SelectorError, match="no such layers"):
        select([], ["conv"])


def test_default_rule_and_asking():
    assert set(kept_dense_by_default(LAYERS)) == {"stem", "body.0.depth", "head.1"}
    tail = Layer("logits", "conv", (1001, 16, 1, 1), output=(1, 1001, 1, 1))
    assert kept_dense_by_default([*LAYERS[:-2], tail])["logits"] == "last linear layer"
    image = Layer("logits", "conv", (8, 16, 1, 1), output=(1, 8, 7, 7))
    assert "logits" not in kept_dense_by_default([*LAYERS[:-2], image])
    body = {"body.0.expand", "body.0.project", "body.1.conv"}
    assert choose(LAYERS)[0] == body | {"head.0"}
    assert choose(LAYERS, ["conv"])[0] == body, "a type that covers more does not ask for the first convolution"
    assert choose(LAYERS, ["conv", "depthwise"])[0] == body | {"body.0.depth"}
    assert choose(LAYERS, ["stem", "head.1"])[0] == {"stem", "head.1"}
    assert choose(LAYERS, ["*"], ["head.*"])[0] == body
    assert choose(LAYERS, ["stem"], ["stem"])[0] == set(), "skip has the last word"


def test_uniform_plan_and_table():
    plan = Plan.uniform(LAYERS, "block-punched:8x4", 6, skip=["body.1.*"], model="net")
    assert set(plan.pruned()) == {"body.0.expand", "body.0.project", "head.0"}
    assert plan.layers["body.1.conv"].reason == "skipped" and plan.layers["stem"].reason == "first convolution"
    plan.check(LAYERS)
    text = str(plan)
    assert len(text.splitlines()) == 8
    assert text.splitlines()[2].split() == ["body.0.expand", "32x16x1x1", "block-punched:8x4", "6", "uniform"]
    with pytest.raises(SchemeError, match="impossible compression rate"):
        Plan.uniform(LAYERS, "filter", 0.3)


def test_per_layer_dictionary():
    plan = Plan.per_layer(LAYERS, {"conv1x1": ("block-punched", 4), "body.0.expand": (Scheme("filter"), 2),
                                   "stem": LayerPlan(Scheme("pattern"), 2.25, reason="tried")})
    assert {name: (str(entry.scheme), entry.rate) for name, entry in plan.pruned().items()} == {
        "stem": ("pattern", 2.25), "body.0.expand": ("filter", 2), "body.0.project": ("block-punched:8x4", 4)}
    with pytest.raises(SelectorError):
        Plan.per_layer(LAYERS, {"nothing": ("filter", 2)})


def test_json_round_trip(tmp_path):
    plan = Plan.uniform(LAYERS, Scheme("block", (4, 16)), 3.5, model="a \"name\"")
    plan.layers["head.0"] = LayerPlan(Scheme("filter"), 2, (64, 16), "rules", "fast enough", 0.25)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert len([line for line in lines if '"scheme"' in line]) == len(LAYERS), "one line per layer"
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(OutputError):
        plan.save(tmp_path / "missing" / "plan.json")


def test_a_short_plan_written_by_hand():
    plan = Plan.from_json('{"format": "blockpunch-plan", "version": 1, "layers": '
                          '{"fc": {"scheme": "filter", "rate": 2}, "conv": {"scheme": "dense"}}}')
    assert plan.layers == {"fc": LayerPlan(Scheme("filter"), 2.0), "conv": LayerPlan(Scheme("dense"))}


def edit(change):
    data = json.loads(Plan.uniform(LAYERS, "filter", 2).to_json())
    change(data, data["layers"]["head.0"])
    return json.dumps(data)


@pytest.mark.parametrize("change, match", [
    (lambda data, layer: layer.update(ratio=3), r"layer 'head.0': unknown field 'ratio'; did you mean 'rate'"),
    (lambda data, layer: data.update(layer={}), "unknown field 'layer'; did you mean 'layers'"),
    (lambda data, layer: data.update(version=2), "version 2 of the format"),
    (lambda data, layer: data.update(format="x"), "not a plan"),
    (lambda data, layer: data.update(layers=[]), "field 'layers'"),
    (lambda data, layer: layer.update(rate=0.5), "layer 'head.0': impossible compression rate"),
    (lambda data, layer: layer.update(rate="2"), "impossible compression rate"),
    (lambda data, layer: layer.update(rate=None), "impossible compression rate"),
    (lambda data, layer: layer.update(scheme="fliter"), "did you mean 'filter'"),
    (lambda data, layer: layer.update(scheme="dense"), "layer 'head.0': 'dense' keeps every weight"),
    (lambda data, layer: layer.pop("scheme"), "field 'scheme' is missing"),
    (lambda data, layer: layer.update(shape="3x3"), "field 'shape'"),
    (lambda data, layer: layer.update(reason=3), "field 'reason' must be text"),
    (lambda data, layer: layer.update(latency_ms="fast"), "field 'latency_ms'"),
    (lambda data, layer: data["layers"].update(stem=3), "layer 'stem': must be an object"),
])
def test_faults_are_named(change, match):
    with pytest.raises(PlanError, match=match) as caught:
        Plan.from_json(edit(change))
    assert "-> " in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "blockpunch-plan", "format": "blockpunch-plan"}'])
def test_not_a_plan(text):
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert "-> " in str(caught.value)


def test_a_plan_that_was_cut_off_says_so():
    whole = Plan.uniform(LAYERS, "filter", 2).to_json()
    for end in range(1, len(whole) - 3):
        with pytest.raises(PlanError, match=r"not JSON: (.|\n)*-> "):
            Plan.from_json(whole[:end], where="p.json")
    for end in (whole.index('"layers"') + 9, whole.index("rate") + 2, whole.index("rate") + 6, len(whole) - 4):
        with pytest.raises(PlanError, match=r"p.json: .*seems to be cut off(.|\n)*-> take a whole copy"):
            Plan.from_json(whole[:end], where="p.json")
    with pytest.raises(PlanError, match="-> mend it there") as caught:
        Plan.from_json(whole.replace('"rate":', '"rate"', 1))
    assert "cut off" not in str(caught.value)


def test_no_such_file(tmp_path):
    with pytest.raises(PlanError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


def test_plan_of_another_model():
    plan = Plan.uniform(LAYERS, "filter", 2)
    other = [*LAYERS[:-1], Layer("classifier", "linear", (10, 64))]
    with pytest.raises(PlanError, match=r"no layer 'head.1'; the plan leaves out 'classifier'"):
        plan.check(other)
    with pytest.raises(PlanError, match=r"no layer 'hed.1' \(did you mean 'head.1'\?\)"):
        Plan.uniform([*LAYERS[:-1], Layer("hed.1", "linear", (10, 64))], "filter", 2).check(LAYERS)
    with pytest.raises(PlanError, match=r"layer 'head.1'.*another model: the weight is \[100, 64\]"):
        plan.check([*LAYERS[:-1], Layer("head.1", "linear", (100, 64))])


def test_prunable_layers_of_a_graph():
    attrs = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 2}
    nodes = [Node("c", "Conv", ("x", "w"), ("y",), attrs),
             Node("r", "Relu", ("y",), ("z",))]
    graph = Graph("g", ["x"], ["z"], nodes, {name: Value(name, (1, 4, 5, 5)) for name in "xyz"},
                  {"w": np.ones((4, 2, 3, 3), np.float32)})
    (layer,) = prunable_layers(graph)
    assert layer == Layer("c", "conv", (4, 2, 3, 3), 2, (1, 4, 5, 5), macs=4 * 25 * 18)
    assert layer.weights == 72 and not layer.depthwise
