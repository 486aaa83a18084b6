"""Engines in processes of their own, and every peer that is installed."""

import os
import signal
import sys
import time

import numpy as np
import pytest

from blockpunch.errors import BenchmarkError
from blockpunch.measure.bench import Entry, bench_entries, relative_error
from blockpunch.measure.engines import ENGINES, Engine, random_inputs
from blockpunch.measure.engines import deepsparse as deepsparse_row
from blockpunch.measure.engines.onnxruntime import OnnxRuntimeRunner
from blockpunch.measure.engines.remote import RemoteRunner
from small_network import write_network


@pytest.fixture
def remote(small_onnx):
    runner = RemoteRunner(ENGINES["onnxruntime"], small_onnx, 1, None)
    yield runner
    runner.close()


def test_a_remote_engine_gives_the_same_outputs(remote, small_onnx):
    local = OnnxRuntimeRunner(small_onnx, 1)
    for seed in (1, 2):
        inputs = random_inputs(local.shapes(None), seed)
        np.testing.assert_array_equal(remote.run(inputs)[0], local.run(inputs)[0])
    assert remote.version == local.version


def test_a_remote_engine_counts_its_own_time(remote, small_onnx):
    inputs = random_inputs(OnnxRuntimeRunner(small_onnx, 1).shapes(None))
    ours, start = time.process_time_ns(), time.perf_counter()
    times = remote.sample(inputs, "cpu", 0.3)
    taken = time.perf_counter() - start
    assert len(times) > 20 and min(times) > 0 and sum(times) / 1e9 < taken
    assert time.process_time_ns() - ours < sum(times), "the clock is the worker's, not this process's"
    assert taken > 0.3


def test_a_worker_that_dies_is_reported(remote):
    os.kill(remote._process.pid, signal.SIGKILL)
    with pytest.raises(BenchmarkError, match="the process of onnxruntime died"):
        remote.run({})


def test_a_model_that_the_worker_cannot_load(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BenchmarkError, match=r"bad\.onnx: onnxruntime cannot load the model"):
        RemoteRunner(ENGINES["onnxruntime"], tmp_path / "bad.onnx", 1, None)


def test_the_worker_needs_no_installed_package(small_onnx, tmp_path, monkeypatch):
    """An interpreter that knows nothing of ``blockpunch``, as those of other environments."""
    wrapper = tmp_path / "python"
    wrapper.write_text(f"#!{sys.executable}\n" + """
import runpy, sys
from importlib import metadata
known = metadata.version
def version(name):
    if name == "blockpunch": raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
sys.path = [entry for entry in sys.path if "/src" not in entry]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
""")
    wrapper.chmod(0o755)
    row = Engine("onnxruntime", "onnxruntime", "bench", lambda *a: None, isolated=True)
    monkeypatch.setenv(row.variable, str(wrapper))
    runner = RemoteRunner(row, small_onnx, 1, None)
    assert runner.version
    runner.close()


def test_what_is_missing_is_said(small_onnx, monkeypatch):
    row = deepsparse_row.ENGINE
    monkeypatch.setenv(row.variable, "/no/such/python")
    entries = [Entry("x", "deepsparse", small_onnx)]
    with pytest.raises(BenchmarkError, match=r"BLOCKPUNCH_DEEPSPARSE_PYTHON=/no/such/python.*is not there\n"):
        bench_entries("x", entries)
    monkeypatch.delenv(row.variable)
    if row.version() is None:
        with pytest.raises(BenchmarkError, match=r"set BLOCKPUNCH_DEEPSPARSE_PYTHON to .* with deepsparse==1\.8\.0"):
            bench_entries("x", entries)


@pytest.mark.parametrize("name", [name for name, row in ENGINES.items() if row.isolated])
def test_isolated_peers_agree_with_onnx_runtime(name, tmp_path):
    if ENGINES[name].version() is None:
        pytest.skip(f"{name} is not installed here: {ENGINES[name].advice}")
    path = write_network(tmp_path / "net.onnx")
    result = bench_entries("x", [Entry(name, name, path), Entry("ours", "blockpunch", path)], seconds=0.1)
    assert result.engines[name].max_rel_error < 1e-4 and result.engines[name].version == ENGINES[name].version()
    assert result.clock == "cpu" and result.engines[name].runs > 3


@pytest.mark.parametrize("name", [name for name, row in ENGINES.items() if row.isolated])
def test_shapes_are_given_and_the_file_stays_as_it_is(name, tmp_path):
    if ENGINES[name].version() is None:
        pytest.skip(f"{name} is not installed here: {ENGINES[name].advice}")
    path = write_network(tmp_path / "net.onnx", batch="N")
    before = path.read_bytes()
    result = bench_entries("x", [Entry(name, name, path)], shapes={"x": (1, 3, 12, 12)}, seconds=0.02)
    assert result.engines[name].max_rel_error < 1e-4
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_mnn_takes_a_batch_and_ncnn_refuses_one(tmp_path):
    if ENGINES["mnn"].version() is None or ENGINES["ncnn"].version() is None:
        pytest.skip("mnn or ncnn is not installed here")
    path = write_network(tmp_path / "net.onnx", batch=2)
    runner = RemoteRunner(ENGINES["mnn"], path, 1, None)
    reference = OnnxRuntimeRunner(path, 1)
    inputs = random_inputs(reference.shapes(None))
    assert relative_error(runner.run(inputs), reference.run(inputs)) < 1e-4
    runner.close()
    with pytest.raises(BenchmarkError, match="one image at a time"):
        bench_entries("x", [Entry("ncnn", "ncnn", path)], seconds=0.05)
