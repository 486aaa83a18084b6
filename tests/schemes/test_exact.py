"""Each regularity against exact enumeration or a figure worked out by hand."""

from itertools import combinations, product

import numpy as np
import pytest

from blockpunch.errors import SchemeError
from blockpunch.schemes import Layout, Scheme
from blockpunch.schemes.pattern import candidates

RNG = np.random.default_rng(3)


def energy(weight, mask):
    return float((weight.astype(np.float64) ** 2)[mask].sum())


@pytest.mark.parametrize("text, shape, groups", [
    ("unstructured", (3, 4), 1), ("filter", (8, 2, 3, 3), 1), ("channel", (3, 9, 2, 2), 1),
    ("channel", (4, 3, 1, 1), 2), ("block-punched:2x2", (4, 4, 2, 1), 1),
    ("block-punched:2x3", (4, 9), 1), ("block-punched:2x2", (8, 2, 1, 2), 2),
    ("pattern", (3, 4, 1, 2), 1),
])
@pytest.mark.parametrize("rate", [1.5, 2, 3, 6])
def test_equal_groups_keep_the_most_energy_of_all_choices(text, shape, groups, rate):
    scheme, weight = Scheme.parse(text), RNG.standard_normal(shape)
    (labels,) = scheme.groupings(shape, conv_groups=groups)
    sizes = np.bincount(labels.ravel())
    assert len(set(sizes)) == 1, "the oracle below needs equal groups"
    mask = scheme.mask(weight, rate, conv_groups=groups)
    kept = len(np.unique(labels[mask]))
    best = max(energy(weight, np.isin(labels, chosen)) for chosen in combinations(range(len(sizes)), kept))
    assert energy(weight, mask) == pytest.approx(best)
    wanted = weight.size / rate / sizes[0]
    assert kept == max(1, int(wanted + 0.5))


def test_groups_by_hand():
    labels = Scheme("block-punched", (2, 2)).groupings((3, 3, 1, 2))[0]
    blocks = labels[..., 0, 0]
    assert [list(row) for row in blocks // 2] == [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    assert np.array_equal(labels[..., 0, 1], blocks + 1)
    rows, columns = Scheme("block", (2, 2)).groupings((3, 3))
    assert [list(row) for row in rows] == [[0, 0, 1], [2, 2, 3], [4, 4, 5]]
    assert [list(row) for row in columns] == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert list(Layout((6, 1, 3, 3), conv_groups=2).filter_blocks(2)) == [0, 0, 1, 2, 2, 3]
    channels = Scheme("channel").groupings((4, 2), conv_groups=2)[0]
    assert [list(row) for row in channels] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_edge_blocks_are_not_favoured():
    weight = np.ones((9, 4, 1, 1))  # two 8x4 blocks: 32 weights and an edge of 4, all alike
    weight[8] = 1.01
    assert Scheme("block-punched", (8, 4)).mask(weight, 4).sum() == 4, "by its mean square the edge block wins"
    weight[8] = 0.99
    assert Scheme("block-punched", (8, 4)).mask(weight, 1.1).sum() == 32, "and loses, though it is small"


@pytest.mark.parametrize("seed", range(20))
def test_block_is_near_the_best_submatrix_of_one_block(seed):
    weight = np.random.default_rng(seed).standard_normal((4, 5))
    mask = Scheme("block", (4, 5)).mask(weight, 2.5)
    kept = mask.sum()
    choices = [np.outer(rows, columns) for rows in product([False, True], repeat=4)
               for columns in product([False, True], repeat=5)]
    best = max(energy(weight, chosen) for chosen in choices if chosen.sum() <= kept)
    assert energy(weight, mask) >= 0.8 * best
    assert abs(kept - 8) <= 2


def test_block_finds_planted_submatrices():
    weight, planted = np.full((32, 48), 1e-3), np.zeros((32, 48), bool)
    for top in range(0, 32, 8):
        for left in range(0, 48, 16):
            rows = top + RNG.choice(8, 4, replace=False)
            planted[np.ix_(rows, left + RNG.choice(16, 8, replace=False))] = True
    weight[planted] = RNG.uniform(1, 2, planted.sum())
    assert np.array_equal(Scheme("block", (8, 16)).mask(weight, 4), planted)


def partitions(filters, height):
    """Every way to cut the filters into blocks."""
    if not filters:
        yield []
        return
    first, *rest = filters
    for others in combinations(rest, height - 1):
        for more in partitions([f for f in rest if f not in others], height):
            yield [(first, *others), *more]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [2, 4])
def test_shuffled_blocks_keep_nearly_the_most_energy_of_all_choices(seed, rate):
    weight = np.random.default_rng(seed).standard_normal((8, 12)) ** 3
    kept = energy(weight, Scheme("block-shuffled", (2, 1)).mask(weight, rate))
    best = max(np.sort(np.concatenate([(weight[list(block)] ** 2).sum(0) for block in blocks]))[-48 // rate:].sum()
               for blocks in partitions(list(range(8)), 2))
    neighbours = energy(weight, Scheme("block-punched", (2, 1)).mask(weight, rate))
    assert 0.93 * best <= kept <= best * (1 + 1e-9)
    assert kept >= neighbours


@pytest.mark.parametrize("groups", [1, 2])
def test_shuffled_blocks_find_planted_ones(groups):
    shape, planted = (32 * groups, 16, 3, 3), []
    for _ in range(groups):
        lists = np.repeat(RNG.random((4, 8, 9)) < 0.3, 2, axis=1).repeat(8, axis=0)  # 8 filters x 2 channels
        planted.append(lists[RNG.permutation(32)])
    planted = np.concatenate(planted).reshape(shape)
    weight = np.where(planted, RNG.uniform(1, 2, shape), 1e-3)
    scheme = Scheme("block-shuffled", (8, 2))
    mask = scheme.mask(weight, planted.size / planted.sum(), conv_groups=groups)
    assert np.array_equal(mask, planted)
    scheme.check(mask, conv_groups=groups)
    order = scheme.filter_order(weight, 3, conv_groups=groups)
    assert sorted(order) == list(range(32 * groups))
    assert np.array_equal(mask, scheme.mask(weight, planted.size / planted.sum(), conv_groups=groups, order=order))
    assert Scheme("block-punched", (8, 2)).filter_order(weight, 3) is None
    mask[0, 0, 0, 0] ^= True
    with pytest.raises(SchemeError, match="partly removed"):
        scheme.check(mask, conv_groups=groups)


def test_block_refuses_what_is_no_submatrix():
    mask = np.ones((4, 4), bool)
    mask[0, 0] = False
    with pytest.raises(SchemeError, match="partly removed"):
        Scheme("block", (2, 2)).check(mask, where="fc")
    mask[0, 1] = False
    Scheme("block", (2, 2)).check(mask)
    with pytest.raises(SchemeError):
        Scheme("block", (4, 4)).check(mask)


def test_patterns_by_rate():
    weight = RNG.standard_normal((12, 7, 3, 3)).astype(np.float32)
    counts = {rate: np.bincount(Scheme("pattern").mask(weight, rate).reshape(84, 9).sum(1), minlength=10)
              for rate in (1.5, 2.25, 6)}
    assert counts[1.5][9] == round((84 * 9 / 1.5 - 84 * 4) / 5) and counts[1.5][4] == 84 - counts[1.5][9]
    assert counts[2.25][4] == 84
    assert counts[6][4] == round(84 * 9 / 6 / 4) and counts[6][0] == 84 - counts[6][4]


def test_patterns_are_the_most_frequent_ones_and_each_kernel_takes_its_best():
    weight = RNG.standard_normal((40, 30, 3, 3))
    mask = Scheme("pattern").mask(weight, 2.25).reshape(-1, 9)
    squares, table = weight.reshape(-1, 9) ** 2, candidates()
    assert len(np.unique(table, axis=0)) == 56 and table[:, 4].all() and (table.sum(1) == 4).all()
    around = np.delete(np.arange(9), 4)
    votes = {}
    for kernel in squares:  # the oracle: each kernel's own centre and three largest others
        key = tuple(sorted([4, *around[np.argsort(-kernel[around])[:3]]]))
        votes[key] = votes.get(key, 0) + 1
    library = {tuple(np.flatnonzero(row)) for row in mask}
    assert len(library) <= 8
    assert min(votes[key] for key in library) >= sorted(votes.values())[-8]
    for kernel, row in zip(squares, mask, strict=True):
        assert kernel[row].sum() == pytest.approx(max(kernel[list(key)].sum() for key in library))


def test_pattern_check_knows_its_library():
    mask = candidates()[:9].reshape(3, 3, 3, 3)
    with pytest.raises(SchemeError, match="9 patterns"):
        Scheme("pattern").check(mask)
    no_centre = np.ones((1, 1, 9), bool)
    no_centre[..., 4:] = False
    with pytest.raises(SchemeError, match="nor a pattern"):
        Scheme("pattern").check(no_centre.reshape(1, 1, 3, 3))


@pytest.mark.parametrize("rate", [0.5, 0, -1, float("nan"), float("inf"), "6", True])
def test_impossible_rates(rate):
    with pytest.raises(SchemeError, match="impossible compression rate"):
        Scheme("filter").mask(np.ones((2, 2)), rate)


def test_dense_has_one_rate():
    assert Scheme("dense").mask(np.ones((2, 2)), 1).all()
    with pytest.raises(SchemeError, match="rate is 1"):
        Scheme("dense").mask(np.ones((2, 2)), 2)
    with pytest.raises(SchemeError):
        Scheme("dense").check(np.array([[True, False]]))


@pytest.mark.parametrize("make, match", [
    (lambda: Scheme("blockpunched"), "did you mean 'block-punched'"),
    (lambda: Scheme("filter", (8, 4)), "no blocks"),
    (lambda: Scheme("block", (0, 4)), "impossible block"),
    (lambda: Scheme("block", (2.5, 4)), "impossible block"),
    (lambda: Scheme.parse("block-punched:8"), "not a block size"),
    (lambda: Scheme.parse("block-punched:8x4", "8x4"), "already names"),
    (lambda: Scheme.parse("block-punched:0x4"), "impossible block"),
    (lambda: Scheme("filter").mask(np.array([[1.0, np.nan]]), 2), "NaN or infinite"),
    (lambda: Scheme("filter").mask(np.ones(4), 2), "no filters and channels"),
    (lambda: Scheme("filter").mask(np.ones((5, 2, 1, 1)), 2, conv_groups=2), "convolution groups"),
])
def test_clear_errors(make, match):
    with pytest.raises(SchemeError, match=match):
        make()
