"""Every regularity of the registry, on odd shapes: what a mask must satisfy whatever the regularity."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockpunch.errors import SchemeError
from blockpunch.schemes import REGULARITIES, Scheme
from blockpunch.schemes.base import keep_largest, nearest_prefix
from blockpunch.schemes.block_shuffled import _assigned

PRUNING = [name for name, rule in REGULARITIES.items() if rule.prunes]
KERNELS = [(), (1, 1), (3, 3), (5, 5), (1, 3), (2, 3), (7,)]


@st.composite
def layers(draw, names=PRUNING):
    """(scheme, weight, convolution groups, rate)"""
    kernel = draw(st.sampled_from(KERNELS))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3])) if kernel else 1
    shape = (groups * draw(st.integers(1, 21)), draw(st.integers(1, 13)), *kernel)
    name = draw(st.sampled_from(names))
    block = (draw(st.integers(1, 9)), draw(st.integers(1, 9))) if REGULARITIES[name].default_block else None
    weight = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal(shape).astype(np.float32)
    return Scheme(name, block), weight, groups, draw(st.floats(1, 40))


def largest_group(scheme, weight, groups):
    if scheme.regularity == "pattern" and weight.shape[2:] == (3, 3):
        return 9
    return max(np.bincount(labels.ravel()).max() for labels in scheme.groupings(weight.shape, conv_groups=groups))


@settings(max_examples=400, deadline=None)
@given(layers())
def test_mask_obeys_its_scheme_and_keeps_the_right_number(case):
    scheme, weight, groups, rate = case
    mask = scheme.mask(weight, rate, conv_groups=groups)
    assert mask.dtype == np.bool_ and mask.shape == weight.shape
    scheme.check(mask, conv_groups=groups)
    assert mask.any(), "at least one group stays"
    wanted = weight.size / rate
    slack = largest_group(scheme, weight, groups)
    # one group either way; a pattern keeps 4 or 9 of a kernel, so that it may be out by half of 5 weights at most
    assert abs(mask.sum() - wanted) <= slack + 1 or mask.sum() <= slack


def obeys(scheme, mask, groups):
    """The oracle: what a mask of each kind looks like, worked out with loops and without the labels' help."""
    filters, channels = mask.shape[:2]
    view = mask.reshape(filters, channels, -1)
    if scheme.regularity == "pattern" and mask.shape[2:] == (3, 3):
        kernels = [kernel for kernel in view.reshape(-1, 9) if kernel.any() and not kernel.all()]
        return all(kernel.sum() == 4 and kernel[4] for kernel in kernels) and len({k.tobytes() for k in kernels}) <= 8
    if scheme.regularity == "block":
        view = view.reshape(filters, -1, 1)
    height, width = scheme.block or {"filter": (1, channels), "channel": (filters, 1)}.get(scheme.regularity, (1, 1))
    if scheme.regularity == "block-shuffled":
        for part in np.split(view, groups):
            left_over = [count % height for count in Counter(row.tobytes() for row in part).values() if count % height]
            if left_over not in ([], [len(part) % height]):
                return False
        height = 1
    for start in range(0, filters, filters // groups):
        for top in range(start, start + filters // groups, height):
            for left in range(0, view.shape[1], width):
                part = view[top:min(top + height, start + filters // groups), left:left + width]
                if scheme.regularity == "block":
                    part = part[:, :, 0]
                    if not np.array_equal(part, np.outer(part.any(1), part.any(0))):
                        return False
                elif scheme.regularity in ("filter", "channel", "pattern"):
                    if part.any() != part.all():
                        return False
                elif any(position.any() != position.all() for position in np.moveaxis(part, 2, 0)):
                    return False
    return True


@settings(max_examples=300, deadline=None)
@given(layers(), st.lists(st.integers(0, 10**6), max_size=3))
def test_check_accepts_and_refuses_what_an_oracle_does(case, flips):
    scheme, weight, groups, rate = case
    mask = scheme.mask(weight, rate, conv_groups=groups)
    for flip in flips:
        mask.flat[flip % mask.size] ^= True
    assert obeys(scheme, mask, groups) or flips
    if obeys(scheme, mask, groups):
        scheme.check(mask, conv_groups=groups)
    else:
        with pytest.raises(SchemeError, match=scheme.regularity):
            scheme.check(mask, conv_groups=groups)


@settings(max_examples=100, deadline=None)
@given(layers())
def test_rate_one_keeps_all_and_masks_are_reproducible_and_scale_free(case):
    scheme, weight, groups, rate = case
    assert scheme.mask(weight, 1, conv_groups=groups).all()
    mask = scheme.mask(weight, rate, conv_groups=groups)
    assert np.array_equal(mask, scheme.mask(weight.copy(), rate, conv_groups=groups))
    assert np.array_equal(mask, scheme.mask(weight.astype(np.float64) * 2.0**-600, rate, conv_groups=groups))


@settings(max_examples=100, deadline=None)
@given(layers())
def test_a_higher_rate_keeps_no_more_weights(case):
    scheme, weight, groups, rate = case
    kept = scheme.mask(weight, rate, conv_groups=groups).sum()
    assert scheme.mask(weight, 1.5 * rate, conv_groups=groups).sum() <= kept + 2


@settings(max_examples=100, deadline=None)
@given(layers())
def test_no_group_straddles_two_convolution_groups(case):
    scheme, weight, groups, _ = case
    home = np.arange(len(weight)) // (len(weight) // groups)
    home = np.broadcast_to(home.reshape(-1, *[1] * (weight.ndim - 1)), weight.shape).ravel()
    for labels in scheme.groupings(weight.shape, conv_groups=groups):
        assert labels.shape == weight.shape
        count = int(labels.max()) + 1
        assert np.array_equal(np.unique(labels), np.arange(count)), "labels are 0 .. n-1"
        low, high = np.full(count, groups), np.full(count, -1)
        np.minimum.at(low, labels.ravel(), home)
        np.maximum.at(high, labels.ravel(), home)
        assert np.array_equal(low, high)


@pytest.mark.parametrize("name", REGULARITIES)
def test_text_round_trip_and_registry_row(name):
    rule = REGULARITIES[name]
    assert rule.name == name and rule.summary
    assert Scheme.parse(str(Scheme(name))) == Scheme(name)
    if rule.default_block:
        assert str(Scheme(name, (16, 2))) == f"{name}:16x2"
        assert Scheme.parse(f"{name}:16x2") == Scheme.parse(name, "16x2") == Scheme.parse(name, (16, 2))
        assert Scheme.parse(name).block == rule.default_block


@pytest.mark.parametrize("name", REGULARITIES)
@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (17, 5, 3, 3), (10, 100)])
def test_all_zero_weights_still_get_a_mask(name, shape):
    rate = 3 if REGULARITIES[name].prunes else 1
    assert Scheme(name).mask(np.zeros(shape, np.float32), rate).any()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=30), st.booleans(),
       st.floats(0, 1))
def test_the_largest_groups_stay_the_first_of_equal_ones(groups, one_size, share):
    scores = np.array([float(score) for score, _ in groups])
    sizes = np.array([2 if one_size else size for _, size in groups])
    keep = round(share * int(sizes.sum()))
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    stays = order[: nearest_prefix(sizes[order], keep)]
    assert keep_largest(scores, sizes, keep).nonzero()[0].tolist() == sorted(stays)


@settings(deadline=None)
@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_no_filter_and_block_would_both_gain_by_another_assignment(filters, height, seed):
    """The definition of a stable assignment (Gale, Shapley 1962), checked pair by pair; small integers: many ties."""
    starts = np.arange(0, filters, height)
    sizes = np.diff(starts, append=filters)
    gains = np.random.default_rng(seed).integers(0, 5, (filters, len(sizes))).astype(np.float64)
    order = _assigned(gains, sizes)
    assert sorted(order) == list(range(filters))
    block = np.empty(filters, np.int64)
    block[order] = np.repeat(np.arange(len(sizes)), sizes)
    value = gains - gains.mean(axis=1, keepdims=True)
    for one in range(filters):
        for other in range(len(sizes)):
            least = value[block == other, other].min()
            assert not (value[one, other] > value[one, block[one]] and value[one, other] > least)


def test_resnet50_takes_seconds():
    import time
    weight = np.random.default_rng(0).standard_normal((512, 512, 3, 3)).astype(np.float32)  # a tenth of the network
    for name in PRUNING:
        start = time.process_time()
        Scheme(name).mask(weight, 6)
        assert time.process_time() - start < 4, name
