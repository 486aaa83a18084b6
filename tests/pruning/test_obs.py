"""One layer's second-order pruning against numpy's least squares, exact enumeration, and magnitude."""

from itertools import combinations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from blockpunch.pruning import obs  # noqa: E402
from blockpunch.pruning.hessian import Moments, grouped, input_columns  # noqa: E402
from blockpunch.schemes import Scheme  # noqa: E402


def samples(columns, count=400, seed=0, groups=1):
    """Correlated inputs with a mean: [groups, columns, count]."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, columns, columns)) @ rng.standard_normal((groups, columns, count))
    return torch.from_numpy(mixed / columns**0.5 + rng.standard_normal((groups, columns, 1))).float()


def problem(filters, columns, groups=1, centred=True, seed=0, pruned=False):
    weight = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((groups, filters, columns))).float()
    x = samples(columns, seed=seed, groups=groups)
    d = x + 0.1 * samples(columns, seed=seed + 5, groups=groups) if pruned else None
    moments = Moments(weight, centred=centred)
    for part in range(4):
        moments.add(x[..., part::4], None if d is None else d[..., part::4])
    return moments, weight, x, x if d is None else d


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(4, 6, 3, padding=1, stride=2), (4, 9, 8)),
    (nn.Conv2d(6, 4, (1, 3), padding=(0, 2), dilation=2), (6, 7, 9)),
    (nn.Conv2d(6, 8, 3, groups=2, bias=False), (6, 6, 6)), (nn.Linear(7, 5), (7,)),
])
def test_columns_times_weight_is_the_layers_output(layer, shape):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    columns = input_columns(layer, x, torch.Generator().manual_seed(1), 10_000)
    got = grouped(layer) @ columns
    wanted = layer(x) - (0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (len(shape) - 1)))
    wanted = wanted.detach().transpose(0, 1).flatten(1)
    assert torch.allclose(got.reshape(len(layer.weight), -1).sort(dim=1).values, wanted.sort(dim=1).values, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_moments_against_numpy(centred):
    moments, weight, x, d = problem(3, 5, groups=2, centred=centred, pruned=True)
    for group in range(2):
        one, two = (item[group].double().numpy() for item in (x, d))
        wanted = weight[group].double().numpy() @ two
        if centred:
            one, two, wanted = (item - item.mean(axis=1, keepdims=True) for item in (one, two, wanted))
        assert np.allclose(moments.gram[group], one @ one.T / one.shape[1], atol=1e-4)
        assert np.allclose(moments.target[group], wanted @ one.T / one.shape[1], atol=1e-4)
        assert np.allclose(moments.energy[group], (wanted**2).mean(axis=1), rtol=1e-4)


def test_the_bias_takes_up_the_mean():
    moments, weight, x, d = problem(3, 5, pruned=True)
    new = weight * torch.tensor([1.0, 0, 1, 1, 0])
    assert torch.allclose(moments.mean_shift(new).float(), (weight @ d - new @ x).mean(dim=2), atol=1e-4)


@pytest.mark.parametrize("centred", [True, False])
def test_refit_and_error_against_lstsq(centred, monkeypatch):
    """Weights on a mask: torch.linalg.lstsq finds the same ones, and the same error."""
    monkeypatch.setattr(obs, "CG_TOLERANCE", 1e-7)
    monkeypatch.setattr(obs, "shrinkage", lambda gram, samples: torch.zeros(len(gram)))
    moments, weight, x, d = problem(6, 8, centred=centred, pruned=True)
    quadratic = obs.Quadratic.of(moments, damping=0.0)
    mask = torch.from_numpy(np.random.default_rng(3).random((1, 6, 8)) < 0.6)
    mask[0, 0] = False
    got = obs.refit(quadratic, mask, quadratic.dense)
    inputs, outputs = x[0].double(), (weight @ d)[0].double()
    if centred:
        inputs, outputs = (item - item.mean(dim=1, keepdim=True) for item in (inputs, outputs))
    lost = 0.0
    for row in range(6):
        kept = mask[0, row]
        best = torch.linalg.lstsq(inputs[kept].T, outputs[row]).solution
        assert torch.allclose((got / quadratic.scale)[0, row][kept].double(), best, atol=1e-3)
        assert not got[0, row][~kept].any()
        lost += float((outputs[row] - best @ inputs[kept]).square().sum())
    assert quadratic.error(got) == pytest.approx(lost / float(outputs.square().sum()), abs=1e-5)


@pytest.mark.parametrize("text, shape", [
    ("channel", (3, 8)), ("channel", (4, 6, 1, 2)), ("unstructured", (2, 5)), ("block-punched:2x1", (4, 5)),
    ("block-punched:2x2", (4, 4, 1, 2)),
])
def test_near_the_best_of_all_masks(text, shape):
    """On problems small enough to try every mask: the error is the least one, or near it, and below magnitude's."""
    scheme = Scheme.parse(text)
    ratios, gains = [], []
    for seed in range(6):
        moments, weight, _, _ = problem(shape[0], int(np.prod(shape[1:])), seed=seed)
        quadratic, labels = obs.Quadratic.of(moments), scheme.groupings(shape)[0].reshape(weight.shape)
        found = obs.LayerPruner(moments, shape).prune(scheme, 2)
        groups = labels.max() + 1
        best = min(quadratic.error(obs.refit(quadratic, mask, quadratic.dense))
                   for kept in combinations(range(groups), groups // 2)
                   for mask in [torch.from_numpy(np.isin(labels, kept))])
        plain = torch.from_numpy(scheme.mask(weight.reshape(shape).numpy(), 2)).reshape(weight.shape)
        magnitude = quadratic.error(obs.refit(quadratic, plain, quadratic.dense))
        assert found.error >= best * (1 - 1e-3)
        ratios.append(found.error / best)
        gains.append(found.error / magnitude)
    assert np.median(ratios) < (1.1 if text == "channel" else 1.5)
    assert np.mean(gains) < 0.97


def test_whole_filters_go_by_what_they_put_out():
    moments, weight, x, _ = problem(6, 5)
    found = obs.LayerPruner(moments, (6, 5)).prune(Scheme("filter"), 2)
    energy = (weight @ x)[0].var(dim=1)
    assert found.mask.all(dim=1).tolist() == (energy >= energy.sort().values[3]).tolist()
    assert found.error == pytest.approx(float(energy.sort().values[:3].sum() / energy.sum()), rel=0.02)


@pytest.mark.parametrize("text", ["unstructured", "filter", "channel", "pattern", "block:4x6", "block-punched:4x2",
                                  "block-punched:8x4"])
@pytest.mark.parametrize("rate", [1.4, 2.5, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_every_regularity(text, rate, groups):
    """The mask obeys the scheme, weights live on the mask alone, and the error is never above magnitude's."""
    shape = (16, 12 // groups, 3, 3)
    moments, weight, _, _ = problem(16 // groups, 9 * shape[1], groups=groups, pruned=True)
    scheme = Scheme.parse(text)
    pruner = obs.LayerPruner(moments, shape, groups)
    found = pruner.prune(scheme, rate)
    scheme.check(found.mask.numpy(), conv_groups=groups)
    plain = scheme.mask(weight.reshape(shape).numpy(), rate, conv_groups=groups)
    assert int(found.mask.sum()) == pytest.approx(plain.sum(), abs=0.01 * plain.size)
    assert not found.weight[~found.mask].any()
    assert found.error <= pruner.problem.error(pruner.problem.dense * torch.from_numpy(plain).reshape(weight.shape))


def test_columns_that_never_vary_do_no_harm():
    weight = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    x = samples(6)
    x[0, 2] = 0
    x[0, 3] = 5
    moments = Moments(weight)
    moments.add(x)
    found = obs.LayerPruner(moments, (4, 6)).prune(Scheme("unstructured"), 2)
    assert bool(found.weight.isfinite().all())
    assert not found.mask[:, 2:4].any()  # they carry nothing but a mean


def test_few_samples_are_not_believed():
    """Independent inputs, hardly more samples than columns: what is chance is left out, and new inputs show it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 16, 64, generator=generator)
    few, many = (torch.randn(1, 64, count, generator=generator) for count in (80, 20_000))
    moments = Moments(weight)
    moments.add(few)
    assert obs.shrinkage(moments.gram, moments.count) > 0.5
    pruner = obs.LayerPruner(moments, (16, 64))
    solution = pruner.prune(Scheme.parse("unstructured"), 4.0)
    true = ((weight[0] - solution.weight) @ many[0]).square().sum() / (weight[0] @ many[0]).square().sum()
    assert float(true) == pytest.approx(solution.error, rel=0.25)
    moments = Moments(weight)
    moments.add(many)
    assert obs.shrinkage(moments.gram + 0.3, moments.count) < 0.02


def test_outputs_vary_as_much_as_before():
    """Least squares shrink what they cannot predict; the filters are scaled back."""
    moments, weight, x, _ = problem(8, 32, centred=True, pruned=False)
    solution = obs.LayerPruner(moments, (8, 32)).prune(Scheme.parse("unstructured"), 2.0)
    before, after = (((item - item.mean(1, keepdim=True)).square()).mean(1)
                     for item in (weight[0] @ x[0], solution.weight @ x[0]))
    assert torch.allclose(before, after, rtol=1e-3)
