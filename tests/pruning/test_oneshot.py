"""Whole networks pruned without training: against magnitude, in torch and as ONNX files; rates spread by errors."""

import copy
import json
import threading

import numpy as np
import onnxruntime
import pytest
from onnx_models import mixed_model

torch = pytest.importorskip("torch")
import onnx  # noqa: E402
from torch import nn  # noqa: E402

from blockpunch.errors import DataError, ModelError, PlanError, SelectorError  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import (  # noqa: E402
    Pruner,
    lockstep,
    module_layers,
)
from blockpunch.pruning import layer_errors as layer_errors_module  # noqa: E402
from blockpunch.pruning.allocate import spread  # noqa: E402
from blockpunch.pruning.layer_errors import LayerErrors, layer_errors  # noqa: E402
from blockpunch.pruning.lockstep import stops  # noqa: E402
from blockpunch.pruning.obs import LayerPruner  # noqa: E402
from blockpunch.pruning.oneshot import first_images, prune_oneshot_  # noqa: E402
from blockpunch.pruning.onnx_oneshot import prune_oneshot_onnx  # noqa: E402
from blockpunch.pruning.onnx_prune import onnx_layers  # noqa: E402
from blockpunch.schemes import Scheme  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Network(nn.Module):
    """Batch-norm and bias, a shortcut, groups, depthwise, and a linear layer at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24),
                                  nn.Conv2d(24, 16, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(16))
        self.tail = nn.Conv2d(16, 20, 3, stride=2)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(torch.relu(self.tail(x)).mean((2, 3)))


def network():
    torch.manual_seed(0)
    model = Network()
    for norm in (model.stem[1], model.body[4]):
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        model.train()(images()[0])
    return model.eval().requires_grad_(False)


def images(count=4, size=32, seed=1):
    """Smooth images: neighbouring pixels say nearly the same, as in photos."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count * size, 3, 6, 6, generator=generator)
    return list(nn.functional.interpolate(noise, 14, mode="bilinear").split(size))


def damage(model, dense, batches):
    """Mean squared change of the outputs over their variance."""
    got, wanted = (torch.cat([net(batch) for batch in batches]) for net in (model, dense))
    return float((got - wanted).square().mean() / wanted.var(dim=0).mean())


@pytest.mark.parametrize("scheme, rate", [("unstructured", 2.5), ("block-punched:4x1", 2), ("block-punched:8x4", 1.6),
                                          ("channel", 1.4), ("filter", 1.2), ("pattern", 2.25), ("block:4x6", 2)])
def test_beats_magnitude_on_images_not_seen(scheme, rate):
    dense, held_out = network(), images(seed=2)
    plan = Plan.uniform(module_layers(dense), scheme, rate)
    model, other = copy.deepcopy(dense), copy.deepcopy(dense)
    model.train()
    seen = []
    result = prune_oneshot_(model, plan, images(), progress=lambda done, total, name: seen.append((done, total, name)))
    assert model.training
    model.eval()
    Pruner(other, plan, example=held_out[0]).apply_()
    assert damage(model, dense, held_out) < 0.7 * damage(other, dense, held_out)
    assert seen[-1][0] == seen[-1][1] == 6
    assert set(result.masks) == plan.pruned().keys() == {"body.0", "body.3", "tail"}
    for layer in module_layers(dense):
        weight = model.get_submodule(layer.name).weight
        if layer.name in result.masks:
            plan.layers[layer.name].scheme.check(result.masks[layer.name].numpy(), conv_groups=layer.conv_groups)
            assert not weight[~result.masks[layer.name]].any()
    counted = {count.name: count.kept for count in result.report.layers}
    assert counted == {name: int(module.weight.count_nonzero()) for name, module in model.named_modules()
                       if isinstance(module, nn.Conv2d | nn.Linear)}
    if scheme == "filter":  # dead filters put out nothing
        dead = ~result.masks["body.3"].flatten(1).any(dim=1)
        assert dead.any() and not model.body[4].weight[dead].any() and not model.body[4].bias[dead].any()


def test_the_same_twice_and_whatever_the_batches():
    plan = Plan.uniform(module_layers(network()), "block-punched:4x1", 2)
    states = []
    for batches in (images(), images(), images(count=2, size=64)):
        model = network()
        prune_oneshot_(model, plan, batches)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert damage_of_states(states[0], states[2]) < 0.2  # other output positions are looked at


def damage_of_states(one, two):
    nets = []
    for state in (one, two):
        net = network()
        net.load_state_dict(state)
        nets.append(net)
    return damage(*nets, images(seed=2))


def test_layer_by_layer_on_its_own_inputs():
    """Each layer's error is that of its output in the pruned network, measured by running both."""
    dense, batches = network(), images()
    model, outputs = copy.deepcopy(dense), {}
    result = prune_oneshot_(model, Plan.uniform(module_layers(dense), "block-punched:4x1", 2), batches)
    for key, net in (("dense", dense), ("pruned", model)):
        for name in result.errors:
            net.get_submodule(name).register_forward_hook(
                lambda _, __, y, key=key, name=name: outputs.setdefault((key, name), []).append(y.transpose(0, 1)))
        for batch in batches:
            net(batch)
    for name, error in result.errors.items():
        wanted, got = (torch.cat([y.flatten(1) for y in outputs[key, name]], dim=1) for key in ("dense", "pruned"))
        lost = (got - wanted).var(dim=1).sum() / wanted.var(dim=1).sum()
        assert float(lost) == pytest.approx(error, rel=0.15, abs=1e-3), name
        if dense.get_submodule(name).bias is not None:  # the mean is right
            assert float((got - wanted).mean(dim=1).abs().max()) < 0.05 * float(wanted.std())


def test_a_pruner_holds_the_masks():
    model = network()
    plan = Plan.uniform(module_layers(model), "unstructured", 3)
    result = prune_oneshot_(model, plan, images())
    pruner = Pruner(model, plan)
    pruner.take(result.masks)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner.apply_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_cannot_be_pruned_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.idle = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 4)
            self.mirrored = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")

        def forward(self, x):
            return self.mirrored(self.twice(self.twice(x)))

    model = Odd()
    plan = Plan.per_layer(module_layers(model), {"*": ("unstructured", 2)})
    before = copy.deepcopy(model.state_dict())
    result = prune_oneshot_(model, plan, images())
    assert result.skipped == {"twice": "it runs 2 times for an image", "idle": "it does not run",
                              "mirrored": "its padding is not plain zeros"}
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("batches, words", [
    ([], "no images"), ([torch.zeros(2, 3, 14, 14) * float("nan")], "NaN"),
    ([torch.zeros(2, 4, 14, 14)], "cannot take"), ([torch.zeros(0, 3, 14, 14)], "holds no images"),
    ([torch.zeros(2, 3, 14, 14, dtype=torch.uint8)], "holds no images"),
])
def test_bad_images(batches, words):
    model = network()
    plan = Plan.uniform(module_layers(model), "unstructured", 2)
    for call in (lambda: prune_oneshot_(model, plan, batches),
                 lambda: layer_errors(model, batches, {"tail": [("unstructured", 2)]})):
        with pytest.raises(DataError, match=words):
            call()


def test_bad_weights_and_plans():
    model = network()
    plan = Plan.uniform(module_layers(model), "unstructured", 2)
    model.tail.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="tail"):
        prune_oneshot_(model, plan, images())
    with pytest.raises(DataError, match="its inputs become NaN"):
        good = network()
        prune_oneshot_(good, Plan.uniform(module_layers(good), "unstructured", 2), [1e30 * batch for batch in images()])
    with pytest.raises(PlanError):
        prune_oneshot_(nn.Sequential(nn.Conv2d(3, 4, 1)), plan, images())


def test_more_batches_join_where_maps_are_small(monkeypatch):
    """A budget of memory lets few batches through the first layers; those that start later see the changed layers."""
    monkeypatch.setattr(lockstep, "FEWEST", 0)
    monkeypatch.setattr(lockstep, "MEMORY", 3 * 2 * 4 * 16 * 14 * 14 * 40)  # 40 images where 16 channels come in
    dense, batches, seen = network(), images(), []
    model = copy.deepcopy(dense)
    with stops([dense, model], batches, ["body.0", "body.3", "tail", "head"]) as stopped:
        for name, inputs in stopped:
            seen.append((name, len(inputs)))
            if name == "body.0":
                with torch.no_grad():
                    model.body[0].weight.zero_()
            elif name == "body.3":
                constant = model.body[2](torch.relu(model.body[0].bias)[:, None, None].expand(24, 14, 14)[None])
                assert all(torch.allclose(x, constant.expand_as(x), atol=1e-5) for _, x in inputs)
    assert seen == [("body.0", 1), ("body.3", 1), ("tail", 1), ("head", 4)]


def test_an_interrupt_leaves_the_model_dense():
    model, threads = network(), threading.active_count()
    before = copy.deepcopy(model.state_dict())

    def interrupt(done, total, name):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_oneshot_(model, Plan.uniform(module_layers(model), "unstructured", 2), images(), progress=interrupt)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert threading.active_count() == threads


def test_first_images():
    assert [len(batch) for batch in first_images([torch.zeros(4, 1), (torch.zeros(4, 1), 0)], 6)] == [4, 2]
    assert [len(batch) for batch in first_images([torch.zeros(4, 1)], 9)] == [4]


def test_stops_end_their_threads():
    """Left early, or by an error in the model, no thread stays behind."""
    model, before = network(), threading.active_count()
    with stops([model, copy.deepcopy(model)], images(), ["body.0", "tail"]) as stopped:
        name, inputs = next(stopped)
        assert name == "body.0" and len(inputs) == 4 and all(torch.equal(a, b) for a, b in inputs)
    assert threading.active_count() == before
    model.tail.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), stops([model], images(), ["body.0", "tail"]) as stopped:
        list(stopped)
    assert threading.active_count() == before
    assert not model.body[0]._forward_pre_hooks


# ------------------------------------------------------------------------------------------------- errors and rates

def candidates(scheme, rates):
    return {name: [(scheme, rate) for rate in rates] for name in ("body.0", "body.3", "tail")}


def test_layer_errors_are_those_on_other_images():
    """A layer of many inputs fits 96 images far better than it does others."""
    generator = torch.Generator().manual_seed(0)
    dense, mixed = nn.Sequential(nn.Linear(256, 32)).requires_grad_(False), torch.randn(200, 256, generator=generator)
    fit, judge, others = ([torch.randn(n, 200, generator=generator) @ mixed] for n in (96, 32, 2000))
    pruned = copy.deepcopy(dense)
    prune_oneshot_(pruned, Plan.uniform(module_layers(pruned), "unstructured", 2, only=["0"]), fit)
    expected = damage(pruned, dense, others)
    inputs = torch.stack([*fit[0].reshape(32, 3, 256).unbind(1), judge[0]], dim=1).flatten(0, 1)  # every fourth judges
    error = layer_errors(dense, [inputs], {"0": [("unstructured", 2)]}).errors["0"]["unstructured", 2]
    assert damage(pruned, dense, fit) < 0.5 * expected
    assert 0.75 * expected < error < 1.33 * expected


def test_layer_errors(tmp_path, monkeypatch):
    model, store = network(), tmp_path / "errors.json"
    table = layer_errors(model, images(), candidates("block-punched:4x1", (1, 1.5, 2, 4)), store=store)
    for rows in table.errors.values():
        errors = [rows["block-punched:4x1", rate] for rate in (1, 1.5, 2, 4)]
        assert errors[0] == 0 and errors == sorted(errors) and errors[1] > 0 and errors[3] < 1
    plain = layer_errors(model, images(), {"tail": [(Scheme("block-punched", (8, 4)), 2), ("unstructured", 2)]}).errors
    assert (plain["tail"]["block-punched:8x4", 2] > table.errors["tail"]["block-punched:4x1", 2]
            > plain["tail"]["unstructured", 2])
    assert LayerErrors.load(store) == table
    assert {name: list(rows) for name, rows in table.costs.items()} == {n: list(r) for n, r in table.errors.items()}
    assert all((cost > 0) == (rate > 1) for rows in table.costs.values() for (_, rate), cost in rows.items())

    class Interrupted(Exception):
        pass

    def interrupt(done, total, name):
        raise Interrupted

    other = tmp_path / "other.json"
    with pytest.raises(Interrupted):
        layer_errors(model, images(), candidates("block-punched:4x1", (1, 1.5, 2, 4)), store=other, progress=interrupt)
    assert len(LayerErrors.load(other).errors) == 1
    monkeypatch.setattr(layer_errors_module, "MEMORY", 1.0)  # a pass for each layer
    rates, prune = [], LayerPruner.prune
    monkeypatch.setattr(LayerPruner, "prune", lambda *given: rates.append(given[2]) or prune(*given))
    assert layer_errors(model, images(), candidates("block-punched:4x1", (1, 1.5, 2, 4)), store=other) == table
    assert len(rates) == 2 * 3  # those of the first layer are known
    with pytest.raises(DataError, match="another model"):
        layer_errors(model, images(seed=3), candidates("unstructured", (2,)), store=other)
    with pytest.raises(SelectorError, match="nothing"):
        layer_errors(model, images(), {"nothing": [("unstructured", 2)]})
    for text in ("{", "{}", json.dumps({"format": "blockpunch-layer-errors", "version": 9})):
        other.write_text(text)
        with pytest.raises(DataError, match="no table of layer errors"):
            LayerErrors.load(other)


def test_spread_is_the_optimum():
    """Against trying every combination of rates."""
    model = network()
    layers, plan = module_layers(model), Plan.uniform(module_layers(model), "unstructured", 2)
    sizes = {layer.name: layer.weights for layer in layers}
    rates = (1.25, 1.6, 2, 4)
    rng = np.random.default_rng(0)
    costs = {name: {("unstructured", rate): float(c * (1 - 1 / rate) ** 2) for rate in rates}
             for name, c in zip(plan.pruned(), rng.uniform(0.2, 2, 3), strict=True)}
    table = LayerErrors(costs=costs)
    found = spread(plan, layers, table, 2)
    total = sum(sizes[name] for name in costs)
    assert sum(sizes[name] / found.layers[name].rate for name in costs) == pytest.approx(total / 2, rel=1e-3)

    def cost(choice):
        return sum(np.interp(1 - 1 / rate, [0, *(1 - 1 / r for r in rates)], [0, *costs[name].values()])
                   for name, rate in choice.items())

    mine = cost({name: found.layers[name].rate for name in costs})
    names = list(costs)
    for a in np.linspace(0, 0.75, 40):
        for b in np.linspace(0, 0.75, 40):
            c = (total / 2 - sizes[names[0]] * a - sizes[names[1]] * b) / sizes[names[2]]
            if 0 <= c <= 0.75:
                assert cost(dict(zip(names, (1 / (1 - part) for part in (a, b, c)), strict=True))) >= mine - 1e-6
    most = max(names, key=lambda name: found.layers[name].rate)
    costs[most] = {cell: 100 * cost for cell, cost in costs[most].items()}  # where it hurts, less is removed
    assert spread(plan, layers, table, 2).layers[most].rate < found.layers[most].rate
    with pytest.raises(PlanError, match="reach"):
        spread(plan, layers, table, 5)
    with pytest.raises(PlanError, match="no errors"):
        spread(Plan.uniform(layers, "filter", 2), layers, table, 2)


# ------------------------------------------------------------------------------------------------------ ONNX files

def test_an_onnx_file_as_the_module(tmp_path):
    """The file written answers as the module that was pruned, and far nearer to the dense one than by magnitude."""
    dense, source = network(), tmp_path / "dense.onnx"
    torch.onnx.export(dense, (images()[0][:1],), str(source), dynamo=False, input_names=["x"], opset_version=17)
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(source).graph.node)  # folded
    layers = onnx_layers(source)
    plan = Plan.uniform(layers, "block-punched:4x1", 2)
    result = prune_oneshot_onnx(source, plan, images(), tmp_path / "pruned.onnx", rate=2, store=tmp_path / "e.json")
    assert len({entry.rate for entry in result.plan.pruned().values()}) > 1
    pruned = [count for count in result.report.layers if result.plan.layers[count.name].prunes]
    assert sum(c.weights for c in pruned) / sum(c.kept for c in pruned) == pytest.approx(2, rel=0.02)
    again = prune_oneshot_onnx(source, result.plan, images(), tmp_path / "again.onnx")
    assert again.report == result.report
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "pruned.onnx").read_bytes()
    Pruner(magnitude := copy.deepcopy(dense), Plan.uniform(module_layers(dense), "block-punched:4x1", 2)).apply_()
    x = torch.cat([batch[:8] for batch in images(seed=2)])
    session = onnxruntime.InferenceSession(str(tmp_path / "pruned.onnx"), providers=["CPUExecutionProvider"])
    got = torch.cat([torch.from_numpy(session.run(None, {"x": item[None].numpy()})[0]) for item in x])
    wanted, other = dense(x), magnitude(x)
    assert float((got - wanted).square().mean()) < 0.5 * float((other - wanted).square().mean())


def test_every_way_to_hold_a_weight(tmp_path):
    """Shared weights, transposed ones, Gemm with alpha: written where they belong, or left dense with a reason."""
    path = tmp_path / "mixed.onnx"
    onnx.save(mixed_model(), path)
    plan = Plan.per_layer(onnx_layers(path), {"first": ("filter", 1.5), "grouped": ("block-punched:2x2", 2),
                                              "product": ("channel", 1.5), "last": ("unstructured", 2),
                                              "t[34]": ("unstructured", 2)})
    batches = [torch.randn(8, 3, 9, 9) for _ in range(6)]
    result = prune_oneshot_onnx(path, plan, batches, tmp_path / "out.onnx")
    assert list(result.skipped) == ["t3", "t4"] and "shares its weight with 't4'" in result.skipped["t3"]
    counted = {c.name: c.rate for c in result.report.layers}
    assert counted["grouped"] == pytest.approx(2, rel=0.1) and counted["product"] == pytest.approx(1.5, rel=0.1)
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
