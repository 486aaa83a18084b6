"""The least-squares refit against numpy's solver, and what it does for a whole network."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.errors import TrainingError  # noqa: E402
from blockpunch.plan import Plan  # noqa: E402
from blockpunch.pruning import Pruner, module_layers  # noqa: E402
from blockpunch.pruning import refit as refit_module  # noqa: E402
from blockpunch.pruning.refit import measure_statistics_, refit_  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("layer, shape", [
    (lambda: nn.Conv2d(4, 10, 3, padding=1, stride=2, bias=False), (4, 8, 8)),
    (lambda: nn.Conv2d(6, 9, 1, stride=2), (6, 8, 8)), (lambda: nn.Conv2d(6, 8, 3, groups=2, dilation=2), (6, 9, 9)),
    (lambda: nn.Linear(12, 10), (12,)),
])
@pytest.mark.parametrize("scheme", ["block-punched:4x2", "unstructured"])
def test_a_layer_against_numpys_least_squares(layer, shape, scheme):
    layer = layer()
    model, images = nn.Sequential(layer), 2 * torch.randn(40, *shape) + 0.5
    dense = copy.deepcopy(layer)
    pruner = Pruner(model, Plan.per_layer(module_layers(model), {"0": (scheme, 2)}))
    assert refit_(pruner, [images], damping=0.0, positions=10_000) == ["0"]
    with torch.no_grad():
        wanted, got = (net(images) - (net.bias.view(-1, *[1] * (len(shape) - 1)) if net.bias is not None else 0)
                       for net in (dense, layer))
    if len(shape) == 1:
        columns = images[None]
    else:
        patches = nn.functional.unfold(images, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        columns = patches.transpose(1, 2).reshape(-1, layer.groups, patches.shape[1] // layer.groups).transpose(0, 1)
    wanted, got = (item.flatten(2).transpose(1, 2).reshape(-1, len(layer.weight)) if item.ndim == 4 else item
                   for item in (wanted, got))
    mask = pruner.masks["0"].flatten(1).numpy()
    for index in range(len(mask)):
        inputs = columns[index // (len(mask) // len(columns))].double().numpy()[:, mask[index]]
        best = np.linalg.lstsq(inputs, wanted[:, index].double().numpy(), rcond=None)[0]
        assert np.allclose(layer.weight.detach().flatten(1)[index].numpy()[mask[index]], best, atol=1e-4)
        assert np.allclose(got[:, index].numpy(), inputs @ best, atol=1e-3)
    assert not layer.weight.detach()[~pruner.masks["0"]].any()


def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24),
                         nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))


def test_a_network_comes_nearer_to_the_dense_one():
    # correlated inputs, as in photos: then the weights that stay can stand in for those that go
    images = nn.functional.avg_pool2d(torch.randn(96, 3, 16, 16), 3, 1)
    dense = network().eval()
    measure_statistics_(dense, [images])
    plan = Plan.uniform(module_layers(dense), "block-punched:4x2", 1.5)
    once, refitted = Pruner(copy.deepcopy(dense), plan), Pruner(copy.deepcopy(dense), plan)
    once.apply_()
    assert refit_(refitted, [images[:48], images[48:]]) == list(refitted.masks)
    with torch.no_grad():
        errors = [float((pruner.model(images) - dense(images)).square().mean()) for pruner in (once, refitted)]
    assert errors[1] < 0.5 * errors[0]
    assert all(torch.equal(once.masks[name], refitted.masks[name]) for name in once.masks)
    assert [count.kept for count in once.report().layers] == [count.kept for count in refitted.report().layers]
    assert not refitted.model.training


def test_statistics_are_the_mean_over_all_batches():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    batches = [torch.randn(8, 3, 5, 5) + shift for shift in (0, 3)]
    measure_statistics_(model, batches)
    with torch.no_grad():
        inner = [model[0](batch) for batch in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inner]).mean(0), atol=1e-5)
    assert torch.allclose(model[1].running_var, torch.stack([x.var((0, 2, 3)) for x in inner]).mean(0), atol=1e-5)
    assert model[1].momentum == 0.1 and model.training


def test_layers_that_do_not_fit_are_pruned_alone(monkeypatch):
    monkeypatch.setattr(refit_module, "LARGEST", 20)
    model = network()
    pruner = Pruner(model, Plan.per_layer(module_layers(model), {"*": ("unstructured", 2)}))
    assert refit_(pruner, [torch.randn(8, 3, 8, 8)]) == ["3", "10", "12"]
    assert all(count.rate == pytest.approx(2, rel=0.02) for count in pruner.report().layers)
    with pytest.raises(TrainingError, match="no images"):
        refit_(pruner, [])
