"""The benchmark itself: it checks outputs, is fair in turns, and says what is missing."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from blockpunch.errors import BenchmarkError, DynamicShapeError, MissingExtraError
from blockpunch.measure import bench as bench_module
from blockpunch.measure.bench import Entry, bench, bench_entries, relative_error
from blockpunch.measure.engines import ENGINES, Engine, LocalRunner, random_inputs
from blockpunch.measure.engines.base import static_shape
from blockpunch.measure.pinning import idlest_cores, pinned
from small_network import write_network


class Sleeper(LocalRunner):
    """An engine that takes a known time and gives a known output."""

    version = "1"
    order: list[str] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, name: str, seconds: float, output: np.ndarray):
        self.name, self.seconds, self.output = name, seconds, output

    def run(self, inputs):
        Sleeper.order.append(self.name)
        end = time.process_time() + self.seconds  # CPU time is what the benchmark counts
        while time.process_time() < end:
            pass
        return [self.output]

    def close(self):
        Sleeper.order.append(f"{self.name} closed")


@pytest.fixture
def sleepers(monkeypatch, small_onnx):
    """Two engines of 2 and 6 ms that agree with ONNX Runtime."""
    expected = bench_module.Reference(None).outputs(small_onnx)[0]
    Sleeper.order = []
    for row in (("quick", 0.002, expected), ("slow", 0.006, expected), ("wrong", 0.001, expected * 1.1)):
        monkeypatch.setitem(ENGINES, row[0], Engine(row[0], "numpy", None, lambda *_, row=row: Sleeper(*row)))
    return small_onnx


def test_times_are_those_of_the_engines(sleepers):
    result = bench(sleepers, ["slow", "quick"], seconds=0.2)
    assert result.clock == "cpu" and result.engines["quick"].max_rel_error == 0
    assert 1.9 < result.engines["quick"].median_ms < 2.6
    assert 5.9 < result.engines["slow"].median_ms < 7.5
    assert result.best_peer() == "quick" and result.speedups() == {}


def test_rounds_are_interleaved_and_rotated(sleepers):
    bench(sleepers, ["slow", "quick"], seconds=0.2)
    turns = [name for i, name in enumerate(Sleeper.order) if i == 0 or Sleeper.order[i - 1] != name]
    assert turns[-2:] == ["slow closed", "quick closed"]
    assert turns.count("slow") >= 3 and turns.count("quick") >= 3


def test_an_engine_that_disagrees_is_not_timed(sleepers):
    told = []
    result = bench(sleepers, ["quick", "wrong"], seconds=0.1, progress=told.append)
    assert list(result.engines) == ["quick"] and list(result.left_out) == ["wrong"]
    assert "wrong disagrees with ONNX Runtime by 0.1" in result.left_out["wrong"]
    assert any("wrong is left out" in line for line in told)
    assert "quick closed" in Sleeper.order and "wrong closed" in Sleeper.order
    loose = [Entry("a", "quick", sleepers), Entry("b", "wrong", sleepers, tolerance=0.2)]
    assert set(bench_entries("x", loose, seconds=0.1).engines) == {"a", "b"}
    assert bench(sleepers, ["wrong"], seconds=0.1, tolerance=0.2).engines["wrong"].max_rel_error == pytest.approx(0.1)


def test_nobody_is_left_to_measure(sleepers, monkeypatch):
    """The only engine disagrees, or all do, or ours does: then there is no result."""
    with pytest.raises(BenchmarkError, match=r"wrong disagrees with ONNX Runtime by 0\.1"):
        bench(sleepers, ["wrong"], seconds=0.1)
    with pytest.raises(BenchmarkError, match="b disagrees"):
        bench_entries("x", [Entry("a", "wrong", sleepers), Entry("b", "wrong", sleepers)], seconds=0.1)
    monkeypatch.setitem(ENGINES, "blockpunch", ENGINES["wrong"])
    with pytest.raises(BenchmarkError, match="blockpunch disagrees"):
        bench(sleepers, ["quick", "blockpunch"], seconds=0.1)


def test_small_outputs():
    """Rounding of numbers that are all but zero is no disagreement; a wrong number is, however small."""
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.float32)
    assert relative_error([zeros + 1e-7], [zeros + 2e-7]) < 2e-4
    assert relative_error([zeros + 3e-6], [zeros + 1e-6]) == pytest.approx(2, rel=1e-3)
    assert relative_error([ones + 0.5], [ones]) == 0.5 and relative_error([zeros + 0.5], [zeros]) == 0.5


def test_peers_may_run_another_file(small_onnx, tmp_path):
    other = write_network(tmp_path / "other.onnx", seed=9)
    result = bench(small_onnx, ["blockpunch", "onnxruntime", "openvino"], peer_model=other, seconds=0.1)
    models = {name: Path(engine.model).name for name, engine in result.engines.items()}
    assert models == {"blockpunch": "small.onnx", "onnxruntime": "other.onnx", "openvino": "other.onnx"}
    assert all(engine.max_rel_error < 1e-4 for engine in result.engines.values())
    assert set(result.speedups()) == {"onnxruntime", "openvino"}


def test_two_threads_use_the_wall_clock(small_onnx):
    result = bench(small_onnx, ["blockpunch", "onnxruntime"], threads=2, seconds=0.1)
    assert result.clock == "wall" and result.threads == 2
    assert result.engines["blockpunch"].max_rel_error < 1e-4


def test_a_compiled_file_is_compared_with_its_source(small_onnx, small_bp):
    result = bench_entries("x", [Entry("ours", "blockpunch", small_bp, small_onnx)], seconds=0.05)
    assert result.engines["ours"].max_rel_error < 1e-4
    assert bench(small_bp, ["blockpunch"], seconds=0.05).engines["blockpunch"].max_rel_error is None


def test_refusals(small_onnx, tmp_path, monkeypatch):
    cases = ((["none"], 1, "no engine named"), ([], 1, "no engine"), (["onnxruntime"], 0, "0 threads"))
    for engines, threads, message in cases:
        with pytest.raises(BenchmarkError, match=message):
            bench(small_onnx, engines, threads=threads)
    monkeypatch.setitem(ENGINES, "gone", Engine("gone", "no-such-package", "bench", lambda *a: None))
    with pytest.raises(MissingExtraError, match=r"no-such-package.*\n.*blockpunch\[bench\]"):
        bench(small_onnx, ["gone"])
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BenchmarkError, match="onnxruntime cannot load the model"):
        bench(tmp_path / "bad.onnx", ["onnxruntime"])


def test_dynamic_dimensions_need_a_shape(tmp_path):
    path = write_network(tmp_path / "d.onnx", batch="N")
    with pytest.raises(DynamicShapeError, match=r"--shape x=N,3,12,12"):
        bench(path, ["onnxruntime"], seconds=0.05)
    result = bench(path, ["onnxruntime", "openvino", "blockpunch"], shapes={"x": (2, 3, 12, 12)}, seconds=0.05)
    assert result.engines["blockpunch"].max_rel_error < 1e-4
    assert static_shape("x", [1, 2], None) == (1, 2)


def test_relative_error():
    a, b = np.array([1.0, -4.0]), np.array([1.0, -2.0])
    assert relative_error([a], [b]) == 1.0 and relative_error([b, b], [b, a]) == 0.5
    assert np.isnan(relative_error([np.array([np.nan])], [b[:1]]))
    with pytest.raises(BenchmarkError, match="shapes"):
        relative_error([a], [b, b])
    with pytest.raises(BenchmarkError, match="shapes"):
        relative_error([a], [b[:1]])


def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
    assert os.sched_getaffinity(0) == before
    assert idlest_cores(64, watch_seconds=0) == sorted(before)


def test_inputs_are_the_same_every_time():
    first, second = random_inputs({"x": (2, 3)}), random_inputs({"x": (2, 3)})
    np.testing.assert_array_equal(first["x"], second["x"])
    assert first["x"].dtype == np.float32
