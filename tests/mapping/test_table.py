"""The latency table: what is on disk, what is refused, what is interpolated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from blockpunch.errors import DataError
from blockpunch.mapping import LatencyTable, Network
from blockpunch.mapping.curves import between, doubt, falling
from blockpunch.mapping.grid import DENSE
from blockpunch.mapping.table import Timing, Work
from blockpunch.schemes import Scheme
from blockpunch.target import Target
from mapping_cases import fill

BLOCK = Scheme("block-punched", (8, 4))


def test_what_is_added_is_read_again(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "t.jsonl"
    made = fill(LatencyTable(path, network.target), network)
    read = LatencyTable(path, network.target)
    assert len(read) == len(made) > 50
    assert read.predict(network, {}) == made.predict(network, {})
    second = network.items[1]
    assert read.cells(second.key) == made.cells(second.key)


def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "t.jsonl"
    item = network.items[1]
    LatencyTable(path, network.target).add(network, {item.step: Timing(item.key, (DENSE, 1.0), 2.0)}, 1.0, [3.0])
    with path.open("a") as file:
        file.write('{"layer": "64x32')
    torn = LatencyTable(path, network.target)
    assert torn.dense(item) == 2.0
    torn.add(network, {item.step: Timing(item.key, (BLOCK, 2.0), 1.0)}, 1.0, [3.0])
    assert LatencyTable(path, network.target).cells(item.key) == {(DENSE, 1.0): 2.0, (BLOCK, 2.0): 1.0}


@pytest.mark.parametrize("field, value, word", [("cpu", "Z80", "another CPU"), ("kernels", "0", "other kernels"),
                                                ("threads", 7, "number of threads"), ("target", "x", "target"),
                                                ("version", 1, "another version")])
def test_tables_of_other_devices_and_kernels_are_refused(tmp_path: Path, network: Network, field: str, value: object,
                                                         word: str) -> None:
    path = tmp_path / "t.jsonl"
    head = LatencyTable(path, network.target).header | {field: value}
    path.write_text(json.dumps(head) + "\n")
    with pytest.raises(DataError, match=word) as caught:
        LatencyTable(path, network.target, model="net.onnx")
    assert f"blockpunch profile net.onnx -o {path} --renew" in str(caught.value)


def test_a_table_of_a_named_cpu_can_be_read_elsewhere(tmp_path: Path, network: Network) -> None:
    path, item = tmp_path / "t.jsonl", network.items[1]
    there = LatencyTable(path, network.target, cpu="Z80")
    there.add(network, {item.step: Timing(item.key, (DENSE, 1.0), 2.0)}, 1.0, [3.0])
    assert LatencyTable(path, network.target, cpu="Z80").dense(item) == 2.0
    with pytest.raises(DataError, match="another CPU"):
        LatencyTable(path, network.target)


def test_other_files_are_refused_and_left_alone(tmp_path: Path, network: Network) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(DataError, match="not a latency table"):
        LatencyTable(path, network.target)
    assert path.read_text() == "my notes\n"


def test_the_command_that_measures_names_target_and_threads(tmp_path: Path) -> None:
    other = Target.named("aarch64" if Target.host().arch == "x86_64" else "x86-64")
    assert LatencyTable(tmp_path / "t", other, 2, model="n.onnx").advice == (
        f"blockpunch profile n.onnx -o {tmp_path / 't'} --target {other.name} --threads 2")


def test_unknown_layers_name_the_command(tmp_path: Path, network: Network) -> None:
    with pytest.raises(DataError, match=r"blockpunch profile net\.onnx"):
        LatencyTable(tmp_path / "t.jsonl", network.target, model="net.onnx").predict(network, {})


def test_between_measured_rates_seconds_go_with_the_weights_kept() -> None:
    curve = {1.0: 10.0, 2.0: 5.0, 8.0: 1.25}
    assert between(curve, 4.0) == pytest.approx(2.5)
    assert between(curve, 20.0) == 1.25
    assert between({1.0: 3.0, 4.0: 3.0}, 2.0) == 3.0


def test_below_the_lowest_measured_rate_dense_forms_promise_nothing() -> None:
    """At rate 2 the layer runs no faster than dense: nor does it at a lower rate, whatever higher rates bring."""
    assert between({1.0: 8.0, 2.0: 8.0, 6.0: 4.0}, 1.5) == 8.0
    assert between({1.0: 8.0, 2.0: 5.0, 6.0: 1.0}, 1.5) == pytest.approx(5 + 4 * (1 / 1.5 - 1 / 2) / (1 / 2 - 1 / 6))


def test_cells_between_far_measurements_are_not_offered(tmp_path: Path, network: Network) -> None:
    made, item, scheme = LatencyTable(tmp_path / "t.jsonl", network.target), network.items[1], Scheme("filter")
    for rate, seconds in ((1.0, 9.0), (24.0, 0.4)):
        made.add(network, {item.step: Timing(item.key, (scheme if rate > 1 else DENSE, rate), seconds)}, 0.5, [20.0])
    assert made.estimate(item.key, scheme, 3.0) == (pytest.approx(0.4 + 8.6 * (1 / 3 - 1 / 24) / (1 - 1 / 24)), False)
    assert [rate for rate in (1.5, 3.0, 12.0, 24.0) if made.sure(item.key, scheme, rate)] == [24.0]
    assert not made.sure(item.key, BLOCK, 2.0)


def test_doubt_is_small_only_where_measured_rates_bear_the_interpolation_out() -> None:
    by_work = {1.0: 10.0, 2.0: 5.0, 6.0: 10 / 6, 24.0: 10 / 24}
    assert doubt(by_work, 4.0) < 1e-9
    assert doubt(by_work, 1.5) > 0.4  # between dense and the first pruned rate nothing bears it out
    kinked = {**by_work, 6.0: 4.0}
    assert doubt(kinked, 4.0) > 0.1
    assert doubt(by_work, 30.0) == 0


def test_falling_is_the_nearest_falling_sequence() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5):
        values, weights = rng.normal(size=count), rng.integers(1, 4, count).astype(float)
        found = np.array(falling(list(values), list(weights)))
        assert (np.diff(found) <= 0).all()
        # The projection onto a convex cone: no falling sequence lies on the far side of it, and the rest stands on it.
        for other in (np.sort(rng.normal(size=count))[::-1] for _ in range(200)):
            assert np.sum(weights * (values - found) * (other - found)) <= 1e-9
    assert falling([3.0, 2.0, 1.0], [1, 1, 1]) == [3, 2, 1]
    assert falling([1.0, 4.0], [3, 1]) == [1.75, 1.75]


def test_an_outlier_does_not_attract_the_mapper(tmp_path: Path, network: Network) -> None:
    """One rate measured far too fast, and one too slow: their mean, and no step up afterwards."""
    made = LatencyTable(tmp_path / "t.jsonl", network.target)
    item, scheme = network.items[1], Scheme("filter")
    for rate, seconds in ((1.0, 9.0), (2.0, 6.0), (3.0, 1.0), (4.0, 3.0), (6.0, 2.0)):
        made.add(network, {item.step: Timing(item.key, (scheme if rate > 1 else DENSE, rate), seconds)}, 0.5, [20.0])
    curve = made.curve(item.key, scheme)
    assert curve == {1.0: 9.0, 2.0: 6.0, 3.0: 2.0, 4.0: 2.0, 6.0: 2.0}
    assert made.estimate(item.key, scheme, 3.0) == (2.0, True)


def test_the_median_of_repeated_measurements_counts(tmp_path: Path, network: Network) -> None:
    made = LatencyTable(tmp_path / "t.jsonl", network.target)
    item = network.items[0]
    for seconds in (1.0, 9.0, 2.0):
        made.add(network, {item.step: Timing(item.key, (DENSE, 1.0), seconds)}, 0.5, [1.0])
    assert made.dense(item) == 2.0


def test_only_the_form_that_most_measurements_were_in_counts(tmp_path: Path, network: Network) -> None:
    made, item = LatencyTable(tmp_path / "t.jsonl", network.target), network.items[1]
    for seconds, work in ((9.0, Work("winograd", 90.0)), (5.0, Work("rows", 50.0)), (4.0, Work("rows", 41.0)),
                          (8.0, Work("winograd", 80.0)), (4.2, Work("rows", 42.0))):
        made.add(network, {item.step: Timing(item.key, (BLOCK, 2.0), seconds, work)}, 0.5, [20.0])
    for table in (made, LatencyTable(tmp_path / "t.jsonl", network.target)):
        assert table.cells(item.key) == {(BLOCK, 2.0): 4.2}
        assert table.work(item.key, BLOCK, 2.0) == Work("rows", 42.0)


def test_rounds_on_a_slow_machine_count_at_the_usual_pace(tmp_path: Path, network: Network) -> None:
    """The dense network beside a round took twice as long as usual, one of its layers longer still."""
    made = LatencyTable(tmp_path / "t.jsonl", network.target)
    item = network.items[0]
    for factor, beside in ((1.0, [1.0, 3.0, 2.0]), (2.0, [2.0, 6.0, 9.0]), (1.0, [1.0, 3.0, 2.0])):
        made.add(network, {item.step: Timing(item.key, (BLOCK, 2.0 * factor), 7.0 * factor)}, factor, beside)
    again = LatencyTable(tmp_path / "t.jsonl", network.target)
    assert again.cells(item.key) == {(BLOCK, 2.0): 7.0, (BLOCK, 4.0): 7.0} and again.rest(network) == 1.0


def test_rates_that_took_longer_than_lower_ones(tmp_path: Path, network: Network) -> None:
    """They are asked for until there are three measurements; other forms are not smoothed with the rest."""
    made, item = LatencyTable(tmp_path / "t.jsonl", network.target), network.items[1]

    def add(rate: float, seconds: float, form: str) -> None:
        cell = (BLOCK if rate > 1 else DENSE, rate)
        made.add(network, {item.step: Timing(item.key, cell, seconds, Work(form, 10.0))}, 0.5, [20.0])

    for rate, seconds, form in ((1.0, 5.0, "winograd"), (2.0, 4.0, "winograd"), (6.0, 6.0, "rows"), (8.0, 4.2, "rows"),
                                (12.0, 4.4, "rows")):
        add(rate, seconds, form)
    assert made.rising(item.key, BLOCK) == [6.0, 12.0]  # 4.2 may be noise
    assert made.curve(item.key, BLOCK) == pytest.approx({1.0: 5.0, 2.0: 4.0, 6.0: 6.0, 8.0: 4.3, 12.0: 4.3})
    for seconds in (6.1, 6.2):
        add(6.0, seconds, "rows")
    assert LatencyTable(tmp_path / "t.jsonl", network.target).rising(item.key, BLOCK) == [12.0]
