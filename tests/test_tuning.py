"""Tuning: what was measured decides, is kept, and is never lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import blockpunch as bp
from blockpunch.compiler import Choice, compile_graph
from blockpunch.graph import interpreter, load_graph
from blockpunch.graph.ir import Graph
from blockpunch.graph.passes import optimize
from blockpunch.target import Target
from blockpunch.tuning import Store, Tuner, store_path


@pytest.fixture
def graph(small_onnx: Path) -> Graph:
    return optimize(load_graph(small_onnx))


def test_the_fastest_measured_schedule_is_taken(graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path / "store.jsonl")
    options = compile_graph(graph, Target.host()).options
    wanted = {}
    for name, layer in options.items():
        for i, choice in enumerate(layer.choices):
            store.add(layer.key, choice, 1.0 if i != 2 else 0.5)
        wanted[name] = layer.choices[2]
    again = Tuner(graph, Target.host(), 1, Store(store.path))  # read back from the file
    assert again.known() == wanted
    program = compile_graph(graph, Target.host(), choices=again.known())
    assert {name: layer.chosen for name, layer in program.options.items()} == wanted


def test_a_gain_within_the_noise_changes_nothing(graph: Graph, tmp_path: Path) -> None:
    store = Store(tmp_path / "store.jsonl")
    options = compile_graph(graph, Target.host()).options
    for layer in options.values():
        store.add(layer.key, layer.choices[0], 1.0)
        store.add(layer.key, layer.choices[1], 0.995)
    assert Tuner(graph, Target.host(), 1, store).known() == {n: layer.choices[0] for n, layer in options.items()}


def test_tuning_measures_and_remembers(graph: Graph, tmp_path: Path) -> None:
    lines: list[str] = []
    tuner = Tuner(graph, Target.host(), 1, Store(tmp_path / "store.jsonl"))
    best = tuner.tune(0.01, lambda text, done: lines.append(text))  # time for one round
    assert lines and set(best) == set(compile_graph(graph, Target.host()).options)
    assert all(t > 0 for times in tuner.store.seconds.values() for t in times.values())
    assert Store(tuner.store.path).seconds == tuner.store.seconds


def test_an_interrupted_line_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.jsonl")
    choice = Choice("pixels", 8, 3, 3, False)
    store.add("key", choice, 0.25)
    with store.path.open("a") as file:
        file.write('{"key": "key", "choice": {"form": "pix')
    assert Store(store.path).seconds == {"key": {choice: 0.25}}


def test_a_tuned_network_computes_the_same(small_onnx: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch,
                                           tmp_path: Path, rng: np.random.Generator) -> None:
    monkeypatch.setenv("BLOCKPUNCH_CACHE", str(tmp_path))
    x = rng.standard_normal(graph.shape("x"), np.float32)
    y = bp.Session(bp.compile(small_onnx, tune_s=0.01)).run(x)
    assert store_path(Target.host(), 1).is_relative_to(tmp_path) and store_path(Target.host(), 1).exists()
    np.testing.assert_allclose(y, next(iter(interpreter.run(graph, [x]).values())), rtol=1e-4, atol=1e-5)


def test_no_tuning_for_a_core_that_is_not_here(graph: Graph) -> None:
    other = "aarch64" if Target.host().arch == "x86_64" else "x86-64-v3"
    with pytest.raises(bp.TargetError, match="cannot tune"):
        Tuner(graph, Target.named(other), 1).tune(1.0)
