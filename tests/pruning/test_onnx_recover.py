"""ONNX files trained as torch modules: the module is the file, and what was trained goes back into it."""

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx_models import constant, conv_bn, layer_weights, mixed_model, run  # noqa: E402

from blockpunch.data import data_root  # noqa: E402
from blockpunch.errors import ModelError, OutputError, PlanError  # noqa: E402
from blockpunch.graph.onnx_import import from_onnx  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import module_layers, onnx_layers, prune_onnx  # noqa: E402
from blockpunch.pruning.graph_module import GraphModule  # noqa: E402
from blockpunch.pruning.onnx_recover import distill_onnx, write_onnx  # noqa: E402
from blockpunch.pruning.recipe import Recipe  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def inputs(path, seed=1):
    graph = from_onnx(path)
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(graph.shape(name)).astype(np.float32)) for name in graph.inputs]


def outputs(module, images):
    with torch.no_grad():
        result = module.eval()(*images)
    return [item.numpy() for item in (result if isinstance(result, tuple) else (result,))]


def close(a, b, tolerance=1e-5):
    return all(np.abs(x - y).max() <= tolerance * np.abs(y).max() for x, y in zip(a, b, strict=True))


@pytest.fixture(params=["mixed", "bn"])
def path(request, tmp_path):
    onnx.save(mixed_model() if request.param == "mixed" else conv_bn("bn"), str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def test_the_module_is_the_file(path):
    module = GraphModule(from_onnx(path))
    assert close(outputs(module, inputs(path)), run(path))
    named = {layer.name: (layer.kind, layer.shape, layer.conv_groups) for layer in module_layers(module)}
    assert named == {layer.name: (layer.kind, layer.shape, layer.conv_groups) for layer in onnx_layers(path)}
    twice = outputs(module, [torch.cat([image, 2 * image]) for image in inputs(path)])
    assert close([item[:1] for item in twice], run(path)), "any batch size"


@pytest.mark.skipif(data_root() is None, reason="no data folder")
@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224", "yolox_nano"])
def test_real_networks_are_modules(name):
    path = data_root() / "models" / f"{name}.onnx"
    module = GraphModule(from_onnx(path))
    assert close(outputs(module, inputs(path)), run(path), 5e-4), "float32, summed in another order"


def test_a_moved_module_computes_where_it_is(tmp_path):
    """``meta`` stands in for a GPU: it refuses tensors of another device just so."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["a"]),
             helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric"),
             helper.make_node("Resize", ["b", "", "scales"], ["c"], mode="linear"),
             helper.make_node("Slice", ["c", "starts", "ends", "axes", "steps"], ["d"]),
             helper.make_node("Conv", ["d", "w"], ["y"])]
    whole = {"starts": [-1], "ends": [-1000], "axes": [3], "steps": [-1]}
    weights = [constant("factor", 1, 4, 1, 1), constant("w", 3, 4, 1, 1),
               numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
               *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in whole.items())]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 6])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 20, 24])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
              str(tmp_path / "m.onnx"))
    module = GraphModule(from_onnx(tmp_path / "m.onnx"))
    assert close(outputs(module, inputs(tmp_path / "m.onnx")), run(tmp_path / "m.onnx"))
    result = module.to("meta")(torch.empty(2, 4, 5, 6, device="meta"))
    assert result.shape == (2, 3, 20, 24) and result.device.type == "meta"


def test_trained_weights_go_back_into_the_file(path):
    graph = from_onnx(path)
    module = GraphModule(graph).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for step in range(3):
        result = module(*[torch.randn(6, *image.shape[1:]) for image in inputs(path, step)])
        (result[0] if isinstance(result, tuple) else result).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    out = path.with_name("out.onnx")
    write_onnx(path, graph, module.constants(), out)
    onnx.checker.check_model(str(out), full_check=True)
    assert close(outputs(module, inputs(path)), run(out)) and not close(run(path), run(out), 1e-3)
    kinds = [[node.op_type for node in onnx.load(str(file)).graph.node if node.op_type not in ("Transpose", "Identity")]
             for file in (path, out)]
    assert kinds[0] == kinds[1]


def test_a_square_matrix_is_not_written_the_wrong_way_round(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"], "square"), helper.make_node("Relu", ["t"], ["u"]),
             helper.make_node("Gemm", ["u", "v", "b"], ["y"], "scaled", alpha=2.0, beta=0.5)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
                              [constant("w", 6, 6), constant("v", 6, 6), constant("b", 1, 6)])
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    imported = from_onnx(path)
    write_onnx(path, imported, GraphModule(imported).constants(), out)
    assert close(run(out), run(path), 1e-6)


class Batches:
    def __init__(self, path, size=16, count=6):
        self.path, self.size, self.count = path, size, count

    def __len__(self):
        return self.count

    def __iter__(self):
        (image,) = inputs(self.path)
        for _ in range(self.count):
            yield torch.randn(self.size, *image.shape[1:])


def test_distillation_brings_the_outputs_back_and_keeps_the_masks(tmp_path):
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(mixed_model(), str(path))
    plan = Plan.uniform(onnx_layers(path), "block-punched:4x4", 2)
    once = prune_onnx(path, plan, tmp_path / "once.onnx")
    seen = []
    report, result = distill_onnx(path, plan, Batches(path), out, progress=seen.append,
                                  recipe=Recipe(epochs=20, optimizer="adam", lr=2e-2, warmup_steps=5))
    assert result.steps == 120 == len(seen) and result.losses[-1] < 0.6 * result.losses[0]
    kept = {count.name: count.kept for count in once.layers}
    before, pruned, after = layer_weights(path), layer_weights(tmp_path / "once.onnx"), layer_weights(out)
    for count in report.layers:  # whole groups: smaller ones at the edges make the counts differ a little
        assert abs(count.kept - kept[count.name]) <= 8 or count.name == "t4", "t3 and t4 are one weight"
    for name, (weight, layer) in after.items():
        if plan.layers[name].prunes:
            plan.layers[name].scheme.check(weight, conv_groups=layer.conv_groups)
            assert not np.array_equal(weight, pruned[name][0])
    assert list(before) == list(after)

    def error(file):
        return np.mean([np.square(run(file, seed)[0] - run(path, seed)[0]).mean() for seed in range(20)])
    assert error(out) < 0.5 * error(tmp_path / "once.onnx")


def test_faults(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(mixed_model(), str(path))
    plan = Plan.uniform(onnx_layers(path), "filter", 2)
    graph = from_onnx(path)
    with pytest.raises(ModelError, match="'nothing' is no weight"):
        write_onnx(path, graph, {"nothing": np.zeros(3, np.float32)}, tmp_path / "out.onnx")
    with pytest.raises(OutputError):
        write_onnx(path, graph, {}, tmp_path / "missing" / "out.onnx")
    with pytest.raises(PlanError):
        distill_onnx(path, Plan({"x": plan.layers["first"]}), Batches(path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
