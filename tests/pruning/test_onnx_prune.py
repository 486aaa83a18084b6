"""Pruned ONNX files: onnxruntime runs them, the importer finds the masks obeyed, and what stays is untouched."""

import errno
import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import conv_bn, layer_weights, line_model, mixed_model, run

from blockpunch import Session, compile
from blockpunch.data import data_root
from blockpunch.errors import ModelError, OutputError, PlanError
from blockpunch.graph.onnx_import import from_onnx
from blockpunch.graph.passes import optimize
from blockpunch.mapping import Network
from blockpunch.plan import LayerPlan, Plan, prunable_layers
from blockpunch.pruning import onnx_weights
from blockpunch.pruning.onnx_prune import onnx_layers, prune_onnx
from blockpunch.schemes import REGULARITIES, Scheme
from blockpunch.target import Target

PRUNING = [name for name, rule in REGULARITIES.items() if rule.prunes]


@pytest.fixture
def mixed(tmp_path):
    onnx.save(mixed_model(), str(tmp_path / "mixed.onnx"))
    return tmp_path / "mixed.onnx"


def test_layers_are_named_as_the_importer_names_them(mixed):
    named = [(item.name, item.kind, item.shape, item.conv_groups) for item in prunable_layers(from_onnx(mixed))]
    scanned = [use.layer for use in onnx_weights.OnnxWeights(mixed).uses()]
    assert [(item.name, item.kind, item.shape, item.conv_groups) for item in scanned] == named
    assert [name for name, *_ in named] == ["first", "grouped", "held_by_constant", "t3", "t4", "computed", "product",
                                           "t9", "last"]
    assert onnx_layers(mixed) == prunable_layers(from_onnx(mixed))


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize("rate", [2, 6])
def test_pruned_file_runs_and_obeys_the_plan(mixed, name, rate):
    scheme = Scheme(name, (4, 2) if REGULARITIES[name].default_block else None)
    plan = Plan.per_layer(onnx_layers(mixed), {"*": (scheme, rate)})
    out = mixed.with_name("out.onnx")
    seen = []
    report = prune_onnx(mixed, plan, out, progress=lambda done, total, layer: seen.append((done, total)))
    assert seen == [(i + 1, 8) for i in range(8)], "the two convolutions that share a weight are pruned once"
    onnx.checker.check_model(str(out), full_check=True)
    assert np.isfinite(run(out)[0]).all() and not np.allclose(run(out)[0], run(mixed)[0])
    before, after = layer_weights(mixed), layer_weights(out)
    assert list(before) == list(after) == [count.name for count in report.layers]
    for count in report.layers:
        (old, layer), (new, _) = before[count.name], after[count.name]
        mask = new != 0
        plan.layers[count.name].scheme.check(mask, conv_groups=layer.conv_groups)
        assert np.array_equal(new[mask], old[mask]), "what stays is untouched"
        assert np.array_equal(mask, plan.layers[count.name].scheme.mask(old, rate, conv_groups=layer.conv_groups))
        assert count.kept == mask.sum() and count.weights == mask.size
    assert np.array_equal(after["t3"][0], after["t4"][0])
    assert report.rate == pytest.approx(sum(c.weights for c in report.layers) / sum(c.kept for c in report.layers))
    assert len(str(report).splitlines()) == 11 and report.to_dict()["layers"]["first"]["kept"] == report.layers[0].kept


def test_pruned_equals_onnxruntime_with_the_mask_applied_by_hand(mixed):
    plan = Plan.per_layer(onnx_layers(mixed), {"product": ("block:4x4", 3), "first": ("block-punched:4x2", 3)})
    prune_onnx(mixed, plan, mixed.with_name("out.onnx"))
    proto = mixed_model()
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if tensor.name == "w0":
            array = array * Scheme("block-punched", (4, 2)).mask(array, 3)
        if tensor.name == "fc0":
            array = array * Scheme("block", (4, 4)).mask(array.T, 3).T
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, str(mixed.with_name("by_hand.onnx")))
    assert np.array_equal(run(mixed.with_name("out.onnx"))[0], run(mixed.with_name("by_hand.onnx"))[0])


def test_shared_weight_with_two_plans_is_split(mixed):
    plan = Plan.per_layer(onnx_layers(mixed), {"t4": ("unstructured", 4)})
    report = prune_onnx(mixed, plan, mixed.with_name("out.onnx"))
    counts = {count.name: count.rate for count in report.layers}
    assert counts["t3"] == 1 and counts["t4"] == 4
    assert np.isfinite(run(mixed.with_name("out.onnx"))[0]).all()


def test_the_same_path_is_replaced(mixed):
    prune_onnx(mixed, Plan.uniform(onnx_layers(mixed), "filter", 2), mixed)
    assert [path.name for path in mixed.parent.iterdir()] == ["mixed.onnx"]
    assert (layer_weights(mixed)["grouped"][0] == 0).mean() == 0.5


@pytest.mark.parametrize("limit", [onnx_weights.INLINE_LIMIT, 100])
def test_external_data(mixed, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(onnx_weights, "INLINE_LIMIT", limit)
    source, out = tmp_path / "in" / "m.onnx", tmp_path / "out" / "p.onnx"
    source.parent.mkdir()
    out.parent.mkdir()
    onnx.save(mixed_model(), str(source), save_as_external_data=True, location="m.bin", size_threshold=0)
    prune_onnx(source, Plan.uniform(onnx_layers(source), "block-punched:4x4", 3), out)
    prune_onnx(mixed, Plan.uniform(onnx_layers(mixed), "block-punched:4x4", 3), tmp_path / "inline.onnx")
    written = sorted(path.name for path in out.parent.iterdir())
    assert written == (["p.onnx", "p.onnx.data"] if limit == 100 else ["p.onnx"])
    assert np.array_equal(run(out)[0], run(tmp_path / "inline.onnx")[0])


@pytest.mark.parametrize("kind", ["bn", "add"])
@pytest.mark.parametrize("zero_dead, silent", [(None, True), (True, True), (False, False)])
def test_dead_filters_fall_silent(tmp_path, kind, zero_dead, silent):
    onnx.save(conv_bn(kind), str(tmp_path / "m.onnx"))
    plan = Plan.per_layer(onnx_layers(tmp_path / "m.onnx"), {"conv": ("filter", 2)})
    prune_onnx(tmp_path / "m.onnx", plan, tmp_path / "p.onnx", zero_dead=zero_dead)
    dead = ~layer_weights(tmp_path / "p.onnx")["conv"][0].any(axis=(1, 2, 3))
    assert dead.sum() == 4
    channels = run(tmp_path / "p.onnx")[1][0]
    assert (not channels[dead].any()) == silent and channels[~dead].any()


def test_lines(tmp_path):
    """Kernels without height are pruned as those of one row; dead filters fall silent there too."""
    onnx.save(line_model(), str(tmp_path / "m.onnx"))
    layers = onnx_layers(tmp_path / "m.onnx")
    assert layers == prunable_layers(from_onnx(tmp_path / "m.onnx"))
    assert [layer.shape for layer in layers] == [(8, 3, 1, 5), (8, 4, 1, 3)]
    plan = Plan.per_layer(layers, {"conv": ("filter", 2), "grouped": ("block-punched:4x2", 3)})
    prune_onnx(tmp_path / "m.onnx", plan, tmp_path / "p.onnx")
    onnx.checker.check_model(str(tmp_path / "p.onnx"), full_check=True)
    graph = from_onnx(tmp_path / "p.onnx")
    plan.layers["grouped"].scheme.check(graph.constants["w1"] != 0, conv_groups=2)
    dead = ~graph.constants["w0"].any(axis=(1, 2, 3))
    assert dead.sum() == 4 and np.mean(graph.constants["w1"] != 0) < 0.4
    channels = run(tmp_path / "p.onnx")[1][0]
    assert not channels[dead].any() and channels[~dead].any()


def test_a_model_with_dynamic_shapes_can_be_pruned(mixed):
    proto = mixed_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(proto, str(mixed))
    report = prune_onnx(mixed, Plan.uniform(onnx_layers(mixed), "channel", 2), mixed)
    assert report.layers[1].rate == 2


def test_faults(mixed, tmp_path, monkeypatch):
    plan = Plan.uniform(onnx_layers(mixed), "filter", 2)
    with pytest.raises(ModelError, match="no such file"):
        prune_onnx(tmp_path / "none.onnx", plan, tmp_path / "o.onnx")
    (tmp_path / "text.onnx").write_text("this is not a model")
    with pytest.raises(ModelError, match="not an ONNX model"):
        prune_onnx(tmp_path / "text.onnx", plan, tmp_path / "o.onnx")
    (tmp_path / "short.onnx").write_bytes(mixed.read_bytes()[:2000])
    with pytest.raises(ModelError, match="truncated"):
        prune_onnx(tmp_path / "short.onnx", plan, tmp_path / "o.onnx")
    with pytest.raises(PlanError, match="another model"):
        prune_onnx(mixed, Plan({"first": LayerPlan(Scheme("filter"), 2)}), tmp_path / "o.onnx")
    with pytest.raises(OutputError):
        prune_onnx(mixed, plan, tmp_path / "missing" / "o.onnx")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = mixed.read_bytes()
    monkeypatch.setattr(onnx_weights.onnx, "save", full)
    with pytest.raises(OutputError, match="No space"):
        prune_onnx(mixed, plan, mixed)
    assert mixed.read_bytes() == before, "nothing is lost"
    assert not (tmp_path / "o.onnx").exists()


def test_weights_that_are_not_finite(mixed):
    proto = mixed_model()
    array = numpy_helper.to_array(proto.graph.initializer[2]).copy()
    array[0, 0, 0, 0] = np.nan
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(array, "wg"))
    plan = Plan.uniform(onnx_layers(mixed), "filter", 2)
    onnx.save(proto, str(mixed))
    with pytest.raises(ModelError, match=r"layer 'grouped'.*NaN"):
        prune_onnx(mixed, plan, mixed)


@pytest.mark.skipif(data_root() is None, reason="no data folder")
@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224", "yolox_nano"])
def test_real_networks(name, tmp_path):
    path = data_root() / "models" / f"{name}.onnx"
    layers = onnx_layers(path)
    plan = Plan.uniform(layers, "block-punched:8x4", 4)
    report = prune_onnx(path, plan, tmp_path / "p.onnx")
    assert all(np.isfinite(array).all() for array in run(tmp_path / "p.onnx"))
    rates = [count.rate for count in report.layers if plan.layers[count.name].prunes and count.weights > 5000]
    assert len(rates) > 10 and min(rates) > 3.9 and max(rates) < 4.7


def test_transposed_convolutions_run_and_stay_dense(tmp_path):
    rng = np.random.default_rng(3)
    weights = {"down": rng.normal(size=(16, 3, 3, 3)), "up": rng.normal(size=(16, 8, 3, 3)),
               "out": rng.normal(size=(8, 8, 3, 3))}
    helper = onnx.helper
    nodes = [helper.make_node("Conv", ["x", "down"], ["a"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("ConvTranspose", ["b", "up"], ["c"], name="transposed", strides=[2, 2], pads=[1, 1, 1, 1],
                              output_padding=[1, 1]),
             helper.make_node("Conv", ["c", "out"], ["y"], name="last", pads=[1, 1, 1, 1])]
    graph = helper.make_graph(
        nodes, "up", [helper.make_tensor_value_info("x", 1, [1, 3, 12, 10])],
        [helper.make_tensor_value_info("y", 1, [1, 8, 12, 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()])
    source, pruned = tmp_path / "up.onnx", tmp_path / "pruned.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(source))
    layers = onnx_layers(source)
    assert [layer.name for layer in layers] == ["conv", "last"] and layers == prunable_layers(from_onnx(source))
    assert [item.name for item in Network(optimize(from_onnx(source)), Target.host()).items] == ["conv", "last"]
    prune_onnx(source, Plan.uniform(layers, "block-punched:8x4", rate=2, only=["last"]), pruned)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(pruned).graph.initializer}
    assert {name: np.count_nonzero(array) for name, array in tensors.items()} == {"down": 432, "up": 1152, "out": 288}
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 10)).astype(np.float32)
    (wanted,) = run(pruned, seed=1)
    assert np.abs(Session(compile(pruned)).run(x) - wanted).max() < 1e-4 * np.abs(wanted).max()
